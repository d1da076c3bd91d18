"""OpenAI's own client, and curl, against the endpoint: every answer right, every refusal with its reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import runtime_cases
import serve_cases as cases
from daemon_cases import PATIENCE_S, until

from cosched.runtime.chat import PlainChat
from cosched.runtime.generation import CHUNK_TOKENS
from cosched.runtime.text import Utf8

HOPELESS = {"x-slo-ttft-ms": "0.001"}  # with cell and node to itself, a prefill takes longer


def client_of(stand: cases.Stand, **more: object) -> openai.OpenAI:
    return openai.OpenAI(base_url=stand.url, api_key="none", timeout=PATIENCE_S, max_retries=0, **more)


def expected(stand: cases.Stand, content: str, n: int) -> str:
    """What the unsplit model answers greedily, from other code: transformers' own model and Python's own decoder."""
    prompt = list(PlainChat().text([{"role": "user", "content": content}]).encode())
    steps = runtime_cases.reference_steps(stand.source, n, prompt)
    assert len(prompt) < CHUNK_TOKENS  # in one chunk, or in two: the same to more digits than argmax needs
    return bytes(int(logits.argmax()) for logits in steps).decode("utf-8", "replace")


def test_a_plain_answer(stand: cases.Stand):
    answer = client_of(stand).chat.completions.create(
        model="llama", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=10
    )
    (choice,) = answer.choices
    assert choice.message.content == expected(stand, "Hi", 10)
    assert (choice.finish_reason, choice.message.role) == ("length", "assistant")
    n_prompt = len("User: Hi\nAssistant:")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (n_prompt, 10)
    assert answer.usage.total_tokens == n_prompt + 10


def test_a_stream_tells_its_usage_at_the_end(stand: cases.Stand):
    chunks = list(
        client_of(stand).chat.completions.create(
            model="llama", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=10, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected(stand, "Hi", 10)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 10


def test_text_completions_take_text_and_tokens(stand: cases.Stand):
    client = client_of(stand)
    whole = client.completions.create(model="llama", prompt="User: Hi\nAssistant:", temperature=0, max_tokens=8)
    tokens = client.completions.create(
        model="llama", prompt=Utf8().encode("User: Hi\nAssistant:"), temperature=0, max_tokens=8
    )
    assert whole.choices[0].text == tokens.choices[0].text == expected(stand, "Hi", 8)
    assert whole.object == "text_completion"
    assert client.completions.create(model="llama", prompt="x", temperature=0).usage.completion_tokens == 16  # type: ignore[union-attr]


def test_a_stop_string_ends_it_and_is_not_told(stand: cases.Stand):
    text = expected(stand, "Hi", 30)
    stop = text[7:10]
    answer = client_of(stand).chat.completions.create(
        model="llama", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=30, stop=[stop, "never"]
    )
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 30
    until(stand.is_free)


def test_a_seed_repeats_a_draw(stand: cases.Stand):
    def drawn(seed: int, **more: float) -> str | None:
        return client_of(stand).chat.completions.create(
            model="llama", messages=[{"role": "user", "content": "Hi"}], max_tokens=12, seed=seed, **more
        ).choices[0].message.content  # fmt: skip

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1, top_p=1e-9) == drawn(2, top_p=1e-9) == expected(stand, "Hi", 12)


def test_fifty_requests_half_of_them_hopeless(stand: cases.Stand):
    """10 at a time, streaming: who is let in gets the right answer, the others 429 with the reason, nobody hangs."""
    right, client = {n: expected(stand, f"Number {n}", 8) for n in range(25)}, client_of(stand)
    before = stand.counted("cosched_serve_refusals_total")

    def one(n: int) -> str | openai.RateLimitError:
        try:
            stream = client.chat.completions.create(
                model="llama", messages=[{"role": "user", "content": f"Number {n // 2}"}], temperature=0, max_tokens=8,
                stream=True, extra_headers=HOPELESS if n % 2 else {},
            )  # fmt: skip
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        except openai.RateLimitError as error:
            return error

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(one, range(50), timeout=PATIENCE_S))
    for n, answer in enumerate(answers):
        if n % 2:
            assert isinstance(answer, openai.RateLimitError), answer
            assert answer.code == "rejected_no_point"
            assert "no way to serve it holds its deadlines" in answer.message
            assert int(answer.response.headers["retry-after"]) > 0
            assert answer.response.headers["x-should-retry"] == "false"
        else:
            assert answer == right[n // 2]
    assert stand.counted("cosched_serve_refusals_total") == before + 25
    until(stand.is_free)


def test_twenty_dropped_connections_hold_nothing_a_second_later(
    stand: cases.Stand, record_property: Callable[[str, object], None]
):
    """Each is cut while its answer streams; a lease and a KV cache each are gone within a second of it."""
    body = cases.chat(max_tokens=3000, ignore_eos=True)
    open_now = []
    for _ in range(20):
        connection = stand.connect()
        connection.sendall(cases.ask("/v1/chat/completions", body, **{"x-slo-tpot-ms": "500"}))
        open_now.append(connection)
    for connection in open_now:
        seen = b""
        while b"data: " not in seen:
            got = connection.recv(4096)
            assert got, seen
            seen += got
        assert b" 200 " in seen.partition(b"\r\n")[0]
    assert stand.client.list().total == 20
    assert len(stand.host.report().sessions) == 20
    assert stand.host.report().kv_bytes > 0
    began = time.monotonic()
    for connection in open_now:
        connection.close()
    until(stand.is_free)
    took = time.monotonic() - began
    record_property("seconds until 20 dropped connections hold nothing", round(took, 3))
    assert took <= 1.0
    assert stand.host.report().kv_bytes == 0


def test_one_dropped_before_its_first_token(stand: cases.Stand):
    connection = stand.connect()
    connection.sendall(
        cases.ask("/v1/chat/completions", cases.chat(messages=[{"role": "user", "content": "x" * 3500}]))
    )
    until(lambda: stand.client.list().total == 1)
    connection.close()
    began = time.monotonic()
    until(stand.is_free)
    assert time.monotonic() - began <= 1.0


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"logprobs": True}, "unsupported_parameter", "logprobs"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"presence_penalty": 1.0}, "unsupported_parameter", "presence_penalty"),
        ({"temperature": -1}, "invalid_value", "temperature"),
        ({"temperature": "warm"}, "invalid_value", "temperature"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1 << 23}, "invalid_value", "max_tokens"),
        ({"stop": [""]}, "invalid_value", "stop"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "unsupported_parameter", "messages[0]"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "context_length_exceeded", "messages"),
        ({"max_tokens": 4090}, "context_length_exceeded", "max_tokens"),
    ],
)
def test_what_cannot_be_done_is_said(stand: cases.Stand, more: dict[str, object], code: str, param: str):
    with pytest.raises(openai.BadRequestError) as caught:
        client_of(stand).chat.completions.create(
            **{"model": "llama", "messages": [{"role": "user", "content": "x"}]} | more
        )  # type: ignore[call-overload]
    assert (caught.value.code, caught.value.param, caught.value.type) == (code, param, "invalid_request_error")


def test_unknown_parameters_are_passed_over(stand: cases.Stand):
    answer = client_of(stand).chat.completions.create(
        model="llama", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=3, user="me",
        extra_body={"min_p": 0.1, "a_thing_to_come": {"deep": [1]}},
    )  # fmt: skip
    assert answer.choices[0].message.content == expected(stand, "Hi", 3)


def test_an_unknown_model_is_404(stand: cases.Stand):
    with pytest.raises(openai.NotFoundError) as caught:
        client_of(stand).chat.completions.create(model="gpt", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    assert client_of(stand).models.retrieve("llama").id == "llama"
    with pytest.raises(openai.NotFoundError):
        client_of(stand).models.retrieve("gpt")


def test_headers_say_whose_channel_and_what_deadlines(stand: cases.Stand):
    def asked(headers: dict[str, str]) -> object:
        return client_of(stand).chat.completions.create(
            model="llama", messages=[{"role": "user", "content": "x"}], max_tokens=1, extra_headers=headers
        )

    asked({"x-cosched-ue": "desk2", "x-slo-tpot-ms": "500"})
    with pytest.raises(openai.PermissionDeniedError, match="may not ask for UE 'phone7'"):
        asked({"x-cosched-ue": "phone7"})
    with pytest.raises(openai.InternalServerError) as caught:
        asked({"x-cosched-ue": "desk3"})  # allowed, and nobody reports it
    assert (caught.value.status_code, caught.value.code) == (503, "rejected_no_channel")
    for headers in ({"x-slo-ttft-ms": "soon"}, {"x-slo-tpot-ms": "-1"}, {"x-cosched-private": "perhaps"}):
        with pytest.raises(openai.BadRequestError):
            asked(headers)
    with pytest.raises(openai.BadRequestError, match="needs layers of 'llama' here"):
        asked({"x-cosched-private": "true"})


def test_curl_streams_it(stand: cases.Stand):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps(cases.chat(max_tokens=5))
    command = [
        "curl",
        "-sS",
        "-N",
        "-i",
        f"{stand.url}/chat/completions",
        "-H",
        "content-type: application/json",
        "-d",
        body,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    head, _, rest = done.stdout.partition("\n\n") if "\r" not in done.stdout else done.stdout.partition("\r\n\r\n")
    assert "200 OK" in head
    assert "text/event-stream" in head
    assert "x-cosched-node: edge0" in head
    assert rest.rstrip().endswith("data: [DONE]")


def test_ready_and_metrics(stand: cases.Stand):
    assert stand.get("/health") == (200, '{"status":"alive"}')
    assert json.loads(stand.get("/ready")[1])["mode"] == "STEADY"
    text = stand.get("/metrics")[1]
    for name in ("time_to_first_token", "time_per_output_token", "e2e_request_latency", "request_queue_time"):
        assert f"# TYPE cosched_serve_{name}_seconds histogram" in text
    assert 'cosched_serve_refusals_total{reason="rejected_no_point"}' in text
    stand.client.drain()
    until(lambda: stand.get("/ready")[0] == 503)
    assert json.loads(stand.get("/ready")[1])["mode"] == "DRAINING"
    with pytest.raises(openai.InternalServerError) as caught:
        client_of(stand).chat.completions.create(model="llama", messages=[{"role": "user", "content": "x"}])
    assert (caught.value.status_code, caught.value.code) == (503, "draining")
    assert caught.value.response.headers["retry-after"]
    stand.client.resume()
    until(lambda: stand.get("/ready")[0] == 200)


def test_threads_of_one_client_do_not_mix(stand: cases.Stand):
    """Answers of many at a time are each their own."""
    client, found = client_of(stand), {}

    def one(n: int) -> None:
        found[n] = client.chat.completions.create(
            model="llama", messages=[{"role": "user", "content": f"Number {n}"}], temperature=0, max_tokens=6
        ).choices[0].message.content  # fmt: skip

    threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert found == {n: expected(stand, f"Number {n}", 6) for n in range(6)}
