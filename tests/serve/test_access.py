"""Keys, quotas and TLS: a front end of its own beside the others, on the same daemon and host."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import ssl
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import serve_cases as cases
from daemon_cases import PATIENCE_S, until

from cosched.serve.clients import digest_of

KEYS = """
[[keys]]
name = "alice"
sha256 = "{alice}"
ue = "desk"
ues = []
concurrent = 1
[[keys]]
name = "bob"
sha256 = "{bob}"
ue = "desk2"
ues = []
requests_per_min = 3
[[keys]]
name = "carol"
sha256 = "{carol}"
ue = "desk"
models = ["other"]
""".format(alice=digest_of("sk-alice"), bob=digest_of("sk-bob"), carol=digest_of("sk-carol"))


@dataclass
class Guarded:
    url: str
    cert: Path
    config: Path
    process: subprocess.Popen[str]

    def client(self, key: str) -> openai.OpenAI:
        trust = ssl.create_default_context(cafile=str(self.cert))
        http = openai.DefaultHttpxClient(verify=trust)
        return openai.OpenAI(base_url=self.url, api_key=key, timeout=PATIENCE_S, max_retries=0, http_client=http)


@pytest.fixture(scope="module")
def guarded(stand: cases.Stand, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", cert], check=True, capture_output=True, timeout=60)
    tls = f'[tls]\ncert = "{cert}"\nkey = "{key}"\n'
    config = cases.configured(stand.folder, stand.place, stand.host, tls + KEYS)
    with cases.front_end(stand.folder, config) as (process, url):
        assert url.startswith("https://127.0.0.1:")
        found = Guarded(url, cert, config, process)
        until(lambda: says_ready(found))
        yield found


def says_ready(guarded: Guarded) -> bool:
    trust = ssl.create_default_context(cafile=str(guarded.cert))
    host, _, port = guarded.url.removeprefix("https://").removesuffix("/v1").partition(":")
    connection = http.client.HTTPSConnection(host, int(port), context=trust, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        return answer.status == 200 and json.loads(answer.read())["mode"] == "STEADY"
    finally:
        connection.close()


def say(client: openai.OpenAI, n: int = 1) -> str | None:
    turns = [{"role": "user", "content": "x"}]
    return client.chat.completions.create(model="llama", messages=turns, max_tokens=n).choices[0].message.content  # type: ignore[arg-type]


def test_who_shows_no_known_key_is_401(guarded: Guarded):
    for key in ("sk-mallory", digest_of("sk-alice")):
        with pytest.raises(openai.AuthenticationError) as caught:
            say(guarded.client(key))
        assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        guarded.client("x").models.list()
    assert say(guarded.client("sk-alice")) is not None


def test_a_key_has_so_many_requests_at_a_time(guarded: Guarded, stand: cases.Stand):
    client = guarded.client("sk-alice")
    stream = client.chat.completions.create(
        model="llama", messages=[{"role": "user", "content": "x"}], max_tokens=1500, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    next(iter(stream))
    with pytest.raises(openai.RateLimitError) as caught:
        say(client)
    assert caught.value.code == "concurrency_exceeded"
    stream.close()
    until(stand.is_free)
    until(lambda: asks(client))


def asks(client: openai.OpenAI) -> bool:
    try:
        return say(client) is not None
    except openai.RateLimitError:
        return False


def test_a_key_has_so_many_requests_a_minute(guarded: Guarded):
    client = guarded.client("sk-bob")
    for _ in range(3):
        say(client)
    with pytest.raises(openai.RateLimitError) as caught:
        say(client)
    assert caught.value.code == "rate_limit_exceeded"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 20


def test_a_key_has_its_models_and_ues(guarded: Guarded):
    client = guarded.client("sk-carol")
    assert client.models.list().data == []
    with pytest.raises(openai.NotFoundError):
        say(client)
    with pytest.raises(openai.PermissionDeniedError):
        guarded.client("sk-alice").chat.completions.create(
            model="llama", messages=[{"role": "user", "content": "x"}], extra_headers={"x-cosched-ue": "desk2"}
        )


def test_a_key_is_revoked_by_a_reload(guarded: Guarded):
    text = guarded.config.read_text()
    guarded.config.write_text(text.replace(digest_of("sk-carol"), digest_of("sk-dora")))
    os.kill(guarded.process.pid, signal.SIGHUP)
    until(lambda: knows(guarded.client("sk-dora")))
    assert not knows(guarded.client("sk-carol"))
    guarded.config.write_text("v = 7")
    os.kill(guarded.process.pid, signal.SIGHUP)
    until(lambda: knows(guarded.client("sk-dora")))


def knows(client: openai.OpenAI) -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError:
        return False
    return True


def test_a_secret_key_that_everybody_reads_is_refused(guarded: Guarded, tmp_path: Path):
    from cosched.errors import BadInput
    from cosched.serve.settings import load

    key = tmp_path / "key.pem"
    key.write_bytes(guarded.cert.with_name("key.pem").read_bytes())
    key.chmod(stat.S_IRUSR | stat.S_IROTH)
    config = tmp_path / "serve.toml"
    config.write_text(f'[tls]\ncert = "{guarded.cert}"\nkey = "{key}"\n[[models]]\nid = "m"\npath = "m"\n')
    with pytest.raises(BadInput, match="everybody can read it"):
        load(config)
