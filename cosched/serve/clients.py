"""Who asks: API keys, what they may, how much of it at a time."""

from __future__ import annotations

import fnmatch
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import msgspec

from cosched.serve.faults import ServeFault, bad, limited
from cosched.serve.settings import ServeSettings, Terms

ANYBODY: Final = ""  # the name of who has no key, where none is asked for
PREFIX: Final = "sk-cosched-"
SECRET_BYTES: Final = 32
MOST_MS: Final = 3_600_000.0

UE: Final = "x-cosched-ue"
PRIVATE: Final = "x-cosched-private"
TTFT: Final = "x-slo-ttft-ms"  # as the gateway API's inference extension and llm-d have them
TPOT: Final = "x-slo-tpot-ms"


class AskedPromise(msgspec.Struct, frozen=True, kw_only=True):
    """What a request is planned with: its key's terms, as its headers change them."""

    client: str
    ue: str
    ttft_s: float
    tpot_s: float
    private: bool
    weight: float
    fallback: str


class ApiClient:
    """One key's terms, and what it has used: a bucket of a minute's worth of requests, and those under way."""

    def __init__(self, name: str, terms: Terms, now_s: float) -> None:
        self.name, self.terms = name, terms
        self.running = 0
        self._left, self._at_s = terms.requests_per_min, now_s

    @contextmanager
    def request(self, now_s: float) -> Iterator[None]:
        """Count a request as long as it runs. Raises ServeFault 429."""
        terms = self.terms
        rate = terms.requests_per_min / 60.0
        self._left = min(terms.requests_per_min, self._left + rate * (now_s - self._at_s))
        self._at_s = now_s
        if self.running >= terms.concurrent:
            raise limited("concurrency_exceeded", f"{self.running} requests of this key are under way: no more", 1.0)
        if self._left < 1.0:
            text = f"more than {terms.requests_per_min:g} requests a minute"
            raise limited("rate_limit_exceeded", text, (1.0 - self._left) / rate)
        self._left -= 1.0
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


class ApiClients:
    """All keys. Secrets are not kept: their SHA-256 is, and what is looked up is the digest of what was shown."""

    def __init__(self, settings: ServeSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: dict[str, ApiClient] = {}
        self.take(settings)

    def take(self, settings: ServeSettings) -> None:
        """Take another configuration's keys; who stays goes on with what he has used."""
        before = self._clients
        now_s = self._clock()
        asked: dict[str, tuple[str, Terms]] = {key.sha256: (key.name, key) for key in settings.keys}
        asked = asked or {ANYBODY: (ANYBODY, settings.defaults)}
        self._clients = {}
        for digest, (name, terms) in asked.items():
            client = before.get(digest) or ApiClient(name, terms, now_s)
            client.name, client.terms = name, terms
            self._clients[digest] = client

    def known(self, headers: Mapping[str, str]) -> ApiClient:
        """Return whose key a request shows. Raises ServeFault 401."""
        if (anybody := self._clients.get(ANYBODY)) is not None:
            return anybody
        kind, _, secret = headers.get("authorization", "").partition(" ")
        found = self._clients.get(digest_of(secret.strip())) if kind.lower() == "bearer" else None
        if found is None:
            text = "this API key is not known here" if secret else "give an API key: Authorization: Bearer KEY"
            raise ServeFault(401, "invalid_api_key", text)
        return found

    def promise(self, client: ApiClient, headers: Mapping[str, str]) -> AskedPromise:
        """Return what a request is planned with. Raises ServeFault 400 and 403."""
        terms = client.terms
        ue = headers.get(UE, terms.ue)
        if not ue:
            raise bad(f"no UE: say in the header {UE} whose channel to plan with, or give the key a `ue`", UE)
        if ue != terms.ue and not any(fnmatch.fnmatchcase(ue, pattern) for pattern in terms.ues):
            raise ServeFault(403, "ue_not_allowed", f"this key may not ask for UE '{ue[:64]}'", param=UE)
        return AskedPromise(
            client=client.name,
            ue=ue,
            ttft_s=1e-3 * _milliseconds(headers, TTFT, terms.ttft_ms),
            tpot_s=1e-3 * _milliseconds(headers, TPOT, terms.tpot_ms),
            private=_flag(headers, PRIVATE, terms.private),
            weight=terms.weight,
            fallback=terms.fallback,
        )


def may_use(client: ApiClient, model: str) -> bool:
    """Whether a key may ask for a model."""
    return any(fnmatch.fnmatchcase(model, pattern) for pattern in client.terms.models)


def digest_of(secret: str) -> str:
    """Return how a secret is kept: it has 256 random bits, so a plain hash will do."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_secret() -> str:
    """Make a key."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def _milliseconds(headers: Mapping[str, str], name: str, default: float) -> float:
    if name not in headers:
        return default
    try:
        found = float(headers[name])
    except ValueError:
        found = 0.0
    if not 0 < found <= MOST_MS:
        raise bad(f"{name}: '{headers[name][:32]}': give milliseconds, more than 0 and at most {MOST_MS:g}", name)
    return found


def _flag(headers: Mapping[str, str], name: str, default: bool) -> bool:
    found = headers.get(name)
    if found is None:
        return default
    if found.lower() not in {"true", "false", "1", "0"}:
        raise bad(f"{name}: '{found[:32]}': true or false", name)
    return found.lower() in {"true", "1"}
