"""Clients that are slow, broken or hostile: each is answered or cut in time, and the others are served."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack

import pytest
import serve_cases as cases
from daemon_cases import until

WITHIN_S = 5.0  # limits of a second, on a machine that may be busy


def answer(connection: socket.socket) -> bytes:
    """Read until the connection is closed, or a whole JSON answer is there."""
    got = b""
    while piece := connection.recv(65536):
        got += piece
        head, _, body = got.partition(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if lengths and len(body) >= lengths[0]:
            break
    return got


def is_cut(connection: socket.socket) -> bool:
    """Wait for the end of a connection."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def seconds_to_cut(connection: socket.socket) -> float:
    began = time.monotonic()
    assert is_cut(connection)
    return time.monotonic() - began


def still_serves(stand: cases.Stand) -> bool:
    with stand.connect() as connection:
        connection.sendall(cases.ask("/v1/chat/completions", cases.chat(stream=False, max_tokens=2)))
        return b" 200 OK" in answer(connection)


def test_who_never_ends_his_head_is_cut(stand: cases.Stand):
    for begun in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx: "):
        with stand.connect() as connection:
            connection.sendall(begun)
            assert seconds_to_cut(connection) < WITHIN_S
    assert still_serves(stand)


def test_a_head_that_is_too_long_is_400(stand: cases.Stand):
    with stand.connect() as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + b"x: " + b"y" * 20_000)
        assert b" 400 " in answer(connection)


def test_a_body_that_never_ends_is_408(stand: cases.Stand):
    with stand.connect() as connection:
        connection.sendall(cases.ask("/v1/chat/completions", cases.chat())[:-5])
        got = answer(connection)
        assert b" 408 " in got
        assert seconds_to_cut(connection) < WITHIN_S  # the rest of it is not waited for


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_long_is_413(stand: cases.Stand, chunked: bool):
    with stand.connect() as connection:
        length = b"transfer-encoding: chunked" if chunked else b"content-length: 2000000"
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" + length + b"\r\n\r\n"
        )
        if chunked:
            for _ in range(20):
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        got = answer(connection)
        assert b" 413 " in got
        assert b'"code":"request_too_large"' in got
        assert seconds_to_cut(connection) < WITHIN_S


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{}", b"[" * 100_000, b'{"model": 1, "messages": 7}',
     b'{"model":"llama","prompt":[[[1]]]}', b'{"model":"llama","prompt":[1e400]}', b'{"model":"llama","prompt":[]}',
     b'{"model":"llama","prompt":[-1]}', b'{"model":"llama","prompt":[99999999999999999999]}',
     b'{"model":"llama","prompt":["a","b"]}', b'{"model":"llama","prompt":"x","max_tokens":1e99}',
     b'{"model":"llama","prompt":"x","seed":"x"}', b'{"model":"llama","prompt":"x","stop":7}'],
)  # fmt: skip
def test_bodies_that_are_none_are_400(stand: cases.Stand, body: bytes):
    with stand.connect() as connection:
        head = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\n" + head.encode() + body)
        got = answer(connection)
    assert b" 400 " in got.partition(b"\r\n")[0]
    error = json.loads(got.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_a_seed_of_any_size_will_do(stand: cases.Stand):
    with stand.connect() as connection:
        body = {"model": "llama", "prompt": "x", "seed": 10**30, "max_tokens": 1}
        connection.sendall(cases.ask("/v1/completions", body))
        assert b" 200 OK" in answer(connection)


def test_a_web_page_cannot_ask_without_asking_first(stand: cases.Stand):
    with stand.connect() as connection:
        connection.sendall(cases.ask("/v1/chat/completions", cases.chat(), **{"content-type": "text/plain"}))
        assert b" 415 " in answer(connection)
    with stand.connect() as connection:
        connection.sendall(b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\norigin: http://evil\r\n\r\n")
        got = answer(connection)
        assert b" 405 " in got
        assert b"access-control" not in got.lower()


def test_who_does_not_read_his_stream_is_dropped(stand: cases.Stand):
    body = cases.chat(max_tokens=3500, ignore_eos=True)
    with stand.connect(receive_bytes=2048) as connection:
        connection.sendall(cases.ask("/v1/chat/completions", body, **{"x-slo-tpot-ms": "500"}))
        until(lambda: stand.client.list().total == 1)
        until(stand.is_free)  # long before its 3 500 tokens are there
        got = b""
        while piece := received(connection):
            got += piece
    assert got.count(b"data: ") < 3500
    assert b"[DONE]" not in got


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


def test_more_connections_than_an_address_may_have(stand: cases.Stand):
    with ExitStack() as stack:
        held = [stack.enter_context(stand.connect()) for _ in range(64)]
        with stand.connect() as one_more:
            assert b" 503 " in answer(one_more)
        held[0].close()
        until(lambda: still_serves(stand))
    until(lambda: still_serves(stand))


def test_requests_in_a_row_on_one_connection(stand: cases.Stand):
    """Sent before the first was answered: each gets its own answer, in order."""
    with stand.connect() as connection:
        one = cases.ask("/v1/completions", {"model": "llama", "prompt": "x", "max_tokens": 2, "temperature": 0})
        connection.sendall(one * 3)
        got = b""
        while got.count(b"finish_reason") < 3:
            piece = connection.recv(65536)
            assert piece, got
            got += piece
    assert got.count(b" 200 OK") == 3
    until(stand.is_free)


def test_garbage_is_no_http(stand: cases.Stand):
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, b"GET\r\n\r\n", b"\0" * 4096):
        with stand.connect() as connection:
            connection.sendall(garbage)
            assert is_cut(connection)
    assert still_serves(stand)
