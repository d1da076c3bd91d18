"""One HTTP exchange: its body within bounds, its answer at the pace of who reads, and the news that he has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from cosched.errors import CoschedError
from cosched.serve.faults import ServeFault
from cosched.serve.settings import ServeLimits

JSON: Final = "application/json"
SSE: Final = "text/event-stream; charset=utf-8"
TRANSPORT: Final = "cosched.transport"  # in a connection's state (listening.py)


class ClientGone(CoschedError):
    """Nobody reads the answer any more: the connection is closed, or stands still for too long."""


class Exchange:
    """Around what ASGI gives."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: ServeLimits) -> None:
        self._receive, self._send, self._limits = receive, send, limits
        self.headers = Headers(scope=scope)
        self._transport: asyncio.Transport | None = scope.get("state", {}).get(TRANSPORT)
        self.began = self.ended = False  # the answer has

    async def body(self) -> bytes:
        """Read it. Raises ServeFault: no JSON, too long, or too slow; ClientGone.

        A web page of somebody else's can send this machine any other type without being asked (the Fetch standard's
        safelisted types), this one it cannot.
        """
        most = self._limits.body_bytes
        if self.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise ServeFault(415, "unsupported_media_type", f"a body is {JSON}: send the header content-type")
        if self.headers.get("content-length", "0").isdecimal() and int(self.headers.get("content-length", "0")) > most:
            raise _too_large(most)
        found = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone("the client has gone")
                    found += message.get("body", b"")
                    if len(found) > most:
                        raise _too_large(most)
                    if not message.get("more_body"):
                        return bytes(found)
        except TimeoutError:
            raise ServeFault(408, "request_timeout", f"the body took more than {self._limits.body_s:g} s") from None

    async def gone(self) -> None:
        """Wait until the client has gone; only after its body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def begin(self, status: int, kind: str, headers: Mapping[str, str]) -> None:
        """Send the head of an answer."""
        self.began = True
        pairs = {"content-type": kind, "cache-control": "no-store", **headers}
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in pairs.items()]
        await self._take({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send some of it. Raises ClientGone: nobody has taken anything for `write_s`."""
        self.ended |= not more
        await self._take({"type": "http.response.body", "body": data, "more_body": more})

    async def answer(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        """Send JSON."""
        data = msgspec.json.encode(value)
        await self.begin(status, JSON, {"content-length": str(len(data)), **(headers or {})})
        await self.write(data, more=False)

    async def cut(self) -> None:
        """Close the connection without waiting for who does not read; what ASGI hears of it comes a turn later."""
        if self._transport is not None:
            self._transport.abort()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def _take(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._limits.write_s):
                await self._send(message)
        except TimeoutError:
            raise ClientGone(f"the client has taken nothing for {self._limits.write_s:g} s") from None


def _too_large(most: int) -> ServeFault:
    return ServeFault(413, "request_too_large", f"a body has at most {most} bytes")
