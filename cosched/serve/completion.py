"""POST /v1/chat/completions and /v1/completions: a request from its body to the last of its answer."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import Final

import structlog
from starlette.types import Receive, Scope, Send

from cosched.serve.answers import AnswerForm, fault_event
from cosched.serve.bodies import MOST_SEED, ChatBody, TextBody, Wanted, decoded, wanted
from cosched.serve.clients import ApiClient, ApiClients, AskedPromise, may_use
from cosched.serve.desk import Admitted, Desk
from cosched.serve.exchange import SSE, ClientGone, Exchange
from cosched.serve.faults import ServeFault, bad
from cosched.serve.metrics import ServeMetrics
from cosched.serve.models import ServedModels, ServedText
from cosched.serve.running import Begun, Over, Runners, RunningJob, TextPiece
from cosched.serve.settings import ServeLimits
from telemetry.messages import LlmSession

log = structlog.get_logger()
DROPPED: Final = "dropped"
BROKEN: Final = "broken"  # in the middle of a stream


class Completions:
    """An ASGI application for one of the two paths. Bodies are of `kind`."""

    def __init__(
        self, kind: type[ChatBody | TextBody], *, clients: ApiClients, models: ServedModels, desk: Desk,
        runners: Runners, limits: ServeLimits, metrics: ServeMetrics,
    ) -> None:  # fmt: skip
        self._kind, self._clients, self._models, self._desk = kind, clients, models, desk
        self._runners, self._limits, self._metrics = runners, limits, metrics
        self._name = "chat" if kind is ChatBody else "completions"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; whatever happens, its lease and its session end with it."""
        exchange = Exchange(scope, receive, send, self._limits)
        outcome = "500"
        try:
            outcome = await self._serve(exchange)
        except ServeFault as fault:
            outcome = str(fault.status)
            self._metrics.refusals.labels(fault.code).inc()
            with contextlib.suppress(ClientGone):
                await exchange.answer(fault.status, fault.body, fault.headers)
        except ClientGone as error:
            outcome = DROPPED
            log.info("dropped", endpoint=self._name, why=str(error))
            await exchange.cut()
        finally:
            self._metrics.requests.labels(self._name, outcome).inc()

    async def _serve(self, exchange: Exchange) -> str:
        arrived_s = time.monotonic()
        client = self._clients.known(exchange.headers)
        promise = self._clients.promise(client, exchange.headers)
        with client.request(arrived_s):
            asked = wanted(decoded(await exchange.body(), self._kind), self._limits, secrets.randbelow(MOST_SEED))
            model = self._model(client, asked)
            work = asyncio.ensure_future(self._complete(exchange, asked, model, promise, arrived_s))
            gone = asyncio.ensure_future(exchange.gone())
            try:
                await asyncio.wait((work, gone), timeout=self._limits.request_s, return_when=asyncio.FIRST_COMPLETED)
                if work.done() or exchange.ended:
                    return await work
                if gone.done():
                    raise ClientGone("the client has closed the connection")
                return await self._late(exchange)
            finally:
                for task in (work, gone):
                    task.cancel()
                await asyncio.gather(work, gone, return_exceptions=True)

    async def _late(self, exchange: Exchange) -> str:
        fault = ServeFault(504, "timeout", f"no whole answer within {self._limits.request_s:g} s", kind="server_error")
        if not exchange.began:
            raise fault
        self._metrics.refusals.labels(fault.code).inc()
        raise ClientGone(str(fault))  # the connection is closed in the middle of its answer

    def _model(self, client: ApiClient, asked: Wanted) -> ServedText:
        if not may_use(client, asked.model):
            text = f"this key may not ask for model '{asked.model[:128]}'"
            raise ServeFault(404, "model_not_found", text, param="model")
        return self._models.the(asked.model)

    async def _complete(
        self, exchange: Exchange, asked: Wanted, model: ServedText, promise: AskedPromise, arrived_s: float
    ) -> str:
        prompt = await asyncio.to_thread(model.encoded, asked, self._limits)
        if promise.private and not model.ref.layers:
            raise bad(
                f"a private request needs layers of '{model.ref.id}' here, and none are: give the model `layers`",
                "x-cosched-private", "private_not_possible",
            )  # fmt: skip
        work = LlmSession(
            model=model.ref.id, context_tokens=0, new_tokens=len(prompt),
            max_output_tokens=model.length(asked, len(prompt)), ttft_s=promise.ttft_s, tpot_s=promise.tpot_s,
            private=promise.private,
        )  # fmt: skip
        async with self._desk.admitted(work, promise, arrived_s) as admitted:
            self._metrics.queued.labels(model.ref.id).observe(admitted.waited_s)
            ends = () if asked.ignore_eos else model.source.end_tokens
            run = self._runners.start(
                model,
                admitted,
                prompt,
                work.max_output_tokens,
                sampling=asked.sampling,
                stops=model.stops(asked),
                ends=ends,
            )
            try:
                form = AnswerForm(asked, admitted.asked.task, len(prompt))
                return await Telling(exchange, form, admitted, self._metrics, arrived_s).tell(run)
            finally:
                run.cancel()


class Telling:
    """Tells one client what a generation brings."""

    def __init__(
        self, exchange: Exchange, form: AnswerForm, admitted: Admitted, metrics: ServeMetrics, arrived_s: float
    ) -> None:
        self._exchange, self._form, self._admitted = exchange, form, admitted
        self._metrics, self._arrived_s = metrics, arrived_s
        self._first_s = 0.0
        self._text: list[str] = []
        self._begun = Begun("", 0)

    async def tell(self, run: RunningJob) -> str:
        """Tell all; return how it ended. Raises ServeFault (nothing was told yet), ClientGone."""
        while True:
            match await run.news.get():
                case Begun() as begun if self._form.wanted.stream:
                    await self._exchange.begin(200, SSE, self._headers(begun))
                case Begun() as begun:
                    self._begun = begun
                case TextPiece() as piece:
                    await self._piece(piece)
                case Over() as over:
                    return await self._end(over)

    def _headers(self, begun: Begun) -> dict[str, str]:
        lease = self._admitted.lease
        return {
            "x-request-id": self._admitted.asked.task, "x-cosched-point": lease.point, "x-cosched-node": begun.node,
            "x-cosched-split": str(begun.split), "x-accel-buffering": "no",
        }  # fmt: skip

    async def _piece(self, piece: TextPiece) -> None:
        if not self._first_s:
            self._first_s = time.monotonic()
            self._metrics.ttft.labels(self._model).observe(self._first_s - self._arrived_s)
        if not piece.text:
            return
        if self._form.wanted.stream:
            await self._exchange.write(self._form.piece(piece.text, piece.tokens))
        else:
            self._text.append(piece.text)

    @property
    def _model(self) -> str:
        return self._form.wanted.model

    async def _end(self, over: Over) -> str:
        self._count(over.tokens)
        if over.fault is not None and not self._exchange.began:
            raise over.fault
        if over.fault is not None:
            self._metrics.refusals.labels(over.fault.code).inc()
            await self._exchange.write(fault_event(over.fault), more=False)
            return BROKEN
        if self._form.wanted.stream:
            await self._exchange.write(self._form.piece("", over.tokens, over.reason))
            await self._exchange.write(self._form.last(over.tokens), more=False)
        else:
            whole = self._form.whole("".join(self._text), over.reason, over.tokens)
            await self._exchange.answer(200, whole, self._headers(self._begun))
        return "200"

    def _count(self, tokens: int) -> None:
        now_s, model = time.monotonic(), self._model
        self._metrics.prompt_tokens.labels(model).inc(self._form.n_prompt)
        self._metrics.tokens.labels(model).inc(tokens)
        self._metrics.e2e.labels(model).observe(now_s - self._arrived_s)
        if tokens > 1:
            self._metrics.tpot.labels(model).observe((now_s - self._first_s) / (tokens - 1))
