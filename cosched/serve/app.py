"""The application: its paths, and all that is behind them, from start to stop."""

from __future__ import annotations

import ipaddress
import secrets
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cosched.serve.bodies import ChatBody, TextBody
from cosched.serve.clients import ApiClients, may_use
from cosched.serve.completion import Completions
from cosched.serve.daemon import DaemonLink
from cosched.serve.desk import Desk
from cosched.serve.faults import INVALID, UNAVAILABLE, ServeFault
from cosched.serve.metrics import ServeMetrics
from cosched.serve.models import ServedModels
from cosched.serve.running import Runners
from cosched.serve.settings import ServeSettings

STEADY: Final = "STEADY"
RUN_BYTES: Final = 4  # that tell this process's tasks from those of the one before it


class FrontEnd:
    """Everything of one front end. Raises BadInput: models or keys."""

    def __init__(self, settings: ServeSettings) -> None:
        self._is_open = not settings.behind_proxy
        prefix = f"{settings.name}-{secrets.token_hex(RUN_BYTES)}-"
        self.metrics = ServeMetrics()
        self.models = ServedModels(settings)
        self.clients = ApiClients(settings)
        self.daemon = DaemonLink(settings, prefix)
        self.desk = Desk(self.daemon, settings.limits, prefix)
        self.runners = Runners(settings, self.daemon.keys, self.daemon.publish)
        self.metrics.running.set_function(lambda: self.desk.running)
        self.metrics.waiting.set_function(lambda: self.desk.waiting)
        self.app = self._app(settings)

    async def start(self) -> None:
        """Connect to the daemon."""
        await self.daemon.start()
        self.daemon.spawn(self.desk.run)

    async def stop(self) -> None:
        """End what still runs."""
        await self.runners.stop()
        await self.daemon.stop()

    def _app(self, settings: ServeSettings) -> Starlette:
        parts: dict[str, Any] = {
            "clients": self.clients, "models": self.models, "desk": self.desk, "runners": self.runners,
            "limits": settings.limits, "metrics": self.metrics,
        }  # fmt: skip
        routes = [
            Route("/v1/chat/completions", Completions(ChatBody, **parts), methods=["POST"]),
            Route("/v1/completions", Completions(TextBody, **parts), methods=["POST"]),
            Route("/v1/models", self._list_models),
            Route("/v1/models/{name:path}", self._show_model),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
        ]
        handlers: dict[Any, Any] = {HTTPException: _http_fault, ServeFault: _fault, Exception: _defect}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _list_models(self, request: Request) -> Response:
        client = self.clients.known(request.headers)
        found = [model.view for model in self.models if may_use(client, model.ref.id)]
        return JSONResponse({"object": "list", "data": found})

    async def _show_model(self, request: Request) -> Response:
        client, name = self.clients.known(request.headers), request.path_params["name"]
        model = self.models.the(name)
        if not may_use(client, name):
            raise ServeFault(404, "model_not_found", f"this key may not ask for model '{name[:128]}'", param="model")
        return JSONResponse(model.view)

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def _ready(self, _: Request) -> Response:
        """200 where the daemon answers and is STEADY."""
        try:
            status = await self.daemon.status()
        except ServeFault as fault:
            return JSONResponse({"status": "unready", "mode": "UNREACHABLE", "why": str(fault)}, 503)
        is_steady = status.mode == STEADY
        told = {"status": "ready" if is_steady else "unready", "mode": status.mode, "alarms": list(status.alarms)}
        return JSONResponse(told, 200 if is_steady else 503)

    async def _metrics(self, request: Request) -> Response:
        """For this machine, and for who has a key; behind a proxy everybody seems to be on this machine."""
        if not self._is_open or request.client is None or not _is_here(request.client.host):
            self.clients.known(request.headers)
        data, kind = self.metrics.exposed(request.headers.get("accept", ""))
        return Response(data, media_type=kind)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _fault(_: Request, fault: Exception) -> Response:
    assert isinstance(fault, ServeFault)  # noqa: S101  # Starlette calls it for those
    return JSONResponse(fault.body, fault.status, fault.headers)


async def _http_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # Starlette calls it for those
    text = f"{request.method} {request.url.path[:128]}: {error.detail}"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    fault = ServeFault(error.status_code, code, text, kind=INVALID)
    return JSONResponse(fault.body, fault.status, {**(error.headers or {}), **fault.headers})


async def _defect(_: Request, error: Exception) -> Response:
    fault = ServeFault(500, "internal", f"{type(error).__name__} here: the log says where", kind=UNAVAILABLE)
    return JSONResponse(fault.body, fault.status)
