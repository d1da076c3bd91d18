"""The network that the end-to-end tests run in does what it says: rates, one for each host, changed while in use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cosched.bench.netns import Net, why_not

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

RECEIVE = """
import socket, sys, time
listening = socket.create_server((sys.argv[1], 9000)); print("ready", flush=True)
for _ in range(2):
    peer, _ = listening.accept()
    size, began = 0, None
    while data := peer.recv(65536):
        began = began or time.monotonic()
        size += len(data)
    print(8 * size / (time.monotonic() - began), flush=True)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 9000)) as s:
    s.sendall(bytes(int(sys.argv[2])))
"""


def test_what_a_host_sends_takes_as_long_as_its_rate_says() -> None:
    with Net() as net:
        far, near = net.host("far"), net.host("near")
        receiver = far.start([sys.executable, "-c", RECEIVE, far.address], stdout=subprocess.PIPE)
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
        for bits_per_s in (4e6, 20e6):
            near.shape(bits_per_s)
            assert near.start([sys.executable, "-c", SEND, far.address, str(round(bits_per_s / 8))]).wait(60) == 0
            goodput = float(receiver.stdout.readline())
            assert 0.85 * bits_per_s < goodput < 1.02 * bits_per_s  # less headers: 66 of 1514 bytes
