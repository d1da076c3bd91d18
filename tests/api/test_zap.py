"""CURVE on real sockets: who is let in to which socket, under which name, and what a stranger gets: nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq

from cosched.api.access import Access, Identity, IdentityLimits
from cosched.api.keys import KeyPair
from cosched.api.zap import Authenticator, new_pair
from telemetry.bus import Bus, ControlSocket, Curve, Dealer, DecisionSocket, Follower, Publisher, TelemetrySocket

SERVER, GNB, EYES, HANDS, STRANGER = (new_pair(name) for name in ("daemon", "gnb", "eyes", "hands", "stranger"))
IDENTITIES = (
    Identity(name="gnb", public=GNB.public, role="publisher", ues=("*",), cells=("*",)),
    Identity(name="eyes", public=EYES.public, role="viewer"),
    Identity(name="hands", public=HANDS.public, role="operator"),
)
PATIENCE_S = 5.0
REFUSAL_S = 0.3  # a handshake on loopback takes some ms; one that is refused is never heard of again


def end(pair: KeyPair, server: KeyPair = SERVER) -> Curve:
    return Curve(pair.public, pair.secret, server.public)


@pytest.fixture
def gate() -> Iterator[Authenticator]:
    made = Authenticator(Access(IDENTITIES))
    yield made
    made.close()


def bound(bus: Bus) -> str:
    bus.bind(["tcp://127.0.0.1:*"])
    return bus.endpoints[0]


def until(gate: Authenticator, done: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
    """Answer handshakes until `done`; False when it never is."""
    steps = round(patience_s / 0.01)
    for _ in range(steps):
        gate.drain()
        if done():
            return True
        gate.wait(0.01)
    return False


def request(gate: Authenticator, endpoint: str, control: ControlSocket, curve: Curve | None) -> str | None:
    """Send one request; return as whom it arrived, None when it does not."""
    client = Dealer(endpoint, curve)
    client.send(b"{}")
    arrived = until(
        gate, lambda: control.wait(0.0), PATIENCE_S if curve and curve.public != STRANGER.public else REFUSAL_S
    )
    asked = control.drain()
    client.close()
    return asked[0].user if arrived else None


def test_known_keys_come_in_under_their_names_and_others_do_not(gate: Authenticator) -> None:
    control = ControlSocket(end(SERVER))
    endpoint = bound(control)
    assert request(gate, endpoint, control, end(HANDS)) == "hands"
    assert request(gate, endpoint, control, end(EYES)) == "eyes"
    assert gate.let_in == {"hands": 1, "eyes": 1}
    assert request(gate, endpoint, control, end(STRANGER)) is None
    assert gate.refused["unknown key"] >= 1
    assert request(gate, endpoint, control, None) is None, "a plain client on a CURVE socket"
    control.close()


def test_the_wrong_server_key_is_noticed_by_the_client(gate: Authenticator) -> None:
    control = ControlSocket(end(SERVER))
    endpoint = bound(control)
    client = Dealer(endpoint, end(HANDS, server=STRANGER))
    client.send(b"{}")
    assert not until(gate, lambda: control.wait(0.0), REFUSAL_S)
    client.close()
    control.close()


def test_a_public_key_without_its_secret_is_not_enough(gate: Authenticator) -> None:
    control = ControlSocket(end(SERVER))
    endpoint = bound(control)
    client = Dealer(endpoint, Curve(HANDS.public, STRANGER.secret, SERVER.public))
    client.send(b"{}")
    assert not until(gate, lambda: control.wait(0.0), REFUSAL_S)
    assert not gate.let_in
    client.close()
    control.close()


def test_telemetry_is_taken_from_publishers_alone(gate: Authenticator) -> None:
    telemetry = TelemetrySocket(end(SERVER))
    endpoint = bound(telemetry)
    publishers = {pair.name: Publisher(endpoint, end(pair)) for pair in (GNB, EYES, HANDS)}
    heard = []

    def said() -> bool:
        for name, publisher in publishers.items():
            publisher.send(b"ran.ue", name.encode())
        heard.extend(telemetry.drain())
        return len(heard) > 3 and gate.refused.total() >= 2

    assert until(gate, said)
    assert {(frame.user, frame.payload) for frame in heard} == {("gnb", b"gnb")}
    assert gate.refused == {"role may not use this socket": gate.refused.total()}
    for publisher in publishers.values():
        publisher.close()
    telemetry.close()


def test_decisions_are_not_shown_to_publishers(gate: Authenticator) -> None:
    decisions = DecisionSocket(end(SERVER))
    endpoint = bound(decisions)
    followers = {pair.name: Follower(endpoint, [b"decision/"], end(pair)) for pair in (GNB, EYES)}
    seen: dict[str, int] = dict.fromkeys(followers, 0)

    def followed() -> bool:
        decisions.send(b"decision/t1", b"{}")
        for name, follower in followers.items():
            seen[name] += len(follower.drain())
        return seen["eyes"] > 3 and gate.refused.total() >= 1

    assert until(gate, followed)
    assert seen["gnb"] == 0
    for follower in followers.values():
        follower.close()
    decisions.close()


def test_a_client_that_reconnects_in_a_loop_is_held_off_and_an_access_can_be_replaced(
    gate: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry.bus.HANDSHAKE_MS", 300)  # after it, a client that was put off tries again
    limited = [msgspec.structs.replace(i, limits=IdentityLimits(connections_per_min=2)) for i in IDENTITIES]
    gate.access = Access(limited)
    control = ControlSocket(end(SERVER))
    endpoint = bound(control)
    assert [request(gate, endpoint, control, end(HANDS)) for _ in range(2)] == ["hands", "hands"]
    client = Dealer(endpoint, end(HANDS))
    client.send(b"{}")
    assert until(gate, lambda: gate.refused["too many connections"])
    assert not control.wait(0.0)
    gate.access = Access(IDENTITIES)  # as a reload does; the client tries again by itself
    assert until(gate, lambda: control.wait(0.0))
    client.close()
    control.close()


def test_plain_stays_plain_beside_it(gate: Authenticator, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The daemon's ipc socket takes plain clients while its tcp one asks for keys."""
    control = ControlSocket(end(SERVER))
    path = tmp_path_factory.mktemp("s") / "c"
    control.bind([f"ipc://{path}", "tcp://127.0.0.1:*"])
    assert path.stat().st_mode & 0o777 == 0o660
    client = Dealer(f"ipc://{path}")
    client.send(b"{}")
    assert control.wait(PATIENCE_S)
    assert [asked.user for asked in control.drain()] == [""]
    assert request(gate, control.endpoints[1], control, end(HANDS)) == "hands"
    client.close()
    control.close()


def test_nonsense_on_the_authentication_socket_is_refused(gate: Authenticator) -> None:
    asking = zmq.Context.instance().socket(zmq.REQ)
    asking.connect("inproc://zeromq.zap.01")
    for frames in ([b"1.0", b"7"], [b"1.0", b"7", b"control", b"", b"", b"PLAIN", b"x", b"y"], [b"0.9"] + [b""] * 6):
        asking.send_multipart(frames)
        assert until(gate, lambda: asking.poll(0))
        assert asking.recv_multipart()[2:4] == [b"400", b"not CURVE"]
    asking.close(linger=0)


def test_new_keys_differ_and_fit_together() -> None:
    assert new_pair("x").secret != new_pair("x").secret
    assert zmq.curve_public(SERVER.secret.encode()).decode() == SERVER.public
