"""Python client of the control API (docs/control-api.md). It blocks; async_client.py has the one that awaits.

    with Client() as daemon:
        lease = daemon.submit("t1", "ue7", LlmSession(model="llama-3-8b", ...))
        for lease in daemon.follow("t1"):
            ...

Answers come as the types of cosched/api/messages.py. A refusal of the daemon raises `Refused` with its code,
silence raises `NoAnswer`; both say what, where and the mend.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from cosched.api import messages as api
from cosched.config.paths import control_endpoint
from cosched.errors import BadInput, CoschedError
from telemetry.bus import Curve, Dealer, Follower
from telemetry.messages import LlmSession, VideoClip

PATIENCE_S: Final = 5.0
SERVICE: Final = "ipc:///run/cosched/control.sock"  # of systemd/cosched.service
_WILDCARDS: Final = ("0.0.0.0", "*", "[::]")  # noqa: S104  # nothing is bound here


class Refused(CoschedError):
    """The daemon did not do it; `code` is one of cosched.api.messages.FAULTS."""

    def __init__(self, fault: api.Fault) -> None:
        super().__init__(f"{fault.message}{f'; {fault.hint}' if fault.hint else ''}")
        self.code = fault.code
        self.hint = fault.hint


class NoAnswer(CoschedError):
    """Nobody answers at the endpoint."""


def curve(key: str, server: str) -> Curve | None:
    """Return the keys of this end: `key` is a file or a name in the keys folder, `server` the daemon's public key.

    None where both are empty: a plain connection. Raises BadInput.
    """
    if not key and not server:
        return None
    if not key or not server:
        raise BadInput("a key and the daemon's public key go together (--key and --server)")
    from cosched.api.keys import check_public, folder, read_pair

    path = Path(key) if key.endswith(".key") else folder() / f"{key}.key"
    pair = read_pair(path)
    return Curve(pair.public, pair.secret, check_public(server))


class Connection:
    """What both clients are made of: the socket, the running number, and the errors.

    endpoint: "" is the socket of this user's or service's daemon; keys: `curve(...)`, for tcp alone. Raises NoAnswer.
    """

    def __init__(self, endpoint: str = "", keys: Curve | None = None, timeout_s: float = PATIENCE_S) -> None:
        self.endpoint = endpoint or default_endpoint()
        self.timeout_s = timeout_s
        self._keys = keys
        self._numbers = itertools.count(1)
        if self.endpoint.startswith("ipc://") and not _is_there(self.endpoint):
            raise NoAnswer(f"{self.endpoint}: no daemon is there; 'cosched run' starts one")
        self.socket = Dealer(self.endpoint, self.keys_for(self.endpoint))

    def keys_for(self, endpoint: str) -> Curve | None:
        """Return the keys to use at an endpoint: ipc is plain."""
        return self._keys if endpoint.startswith("tcp://") else None

    def request(self, verb: str, args: api.Args) -> tuple[int, bytes]:
        """Return the next request's number and bytes."""
        number = next(self._numbers)
        raw = msgspec.Raw(msgspec.msgpack.encode(args))
        return number, msgspec.msgpack.encode(api.Request(verb=verb, id=number, args=raw))

    def silence(self, verb: str) -> NoAnswer:
        """Return the error for a request that nobody answered."""
        why = "is the daemon busy or stopped, or is this key not allowed?" if self._keys else "is the daemon running?"
        return NoAnswer(f"{self.endpoint}: no answer to '{verb}' within {self.timeout_s:g} s; {why}")

    def follower(self, watching: api.Watching, tasks: Sequence[str]) -> Follower:
        """Subscribe to the decisions of `tasks`, or of all."""
        topics = [f"{watching.topic}{task}".encode() for task in tasks] or [watching.topic.encode()]
        endpoint = reachable(self.endpoint, watching.endpoints)
        return Follower(endpoint, topics, self.keys_for(endpoint))

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def default_endpoint() -> str:
    """Return the control socket of this user's daemon, or the service's where there is only that."""
    own = control_endpoint()
    return SERVICE if not _is_there(own) and _is_there(SERVICE) else own


def _is_there(endpoint: str) -> bool:
    return Path(endpoint.removeprefix("ipc://")).exists()


def reachable(control: str, offered: Sequence[str]) -> str:
    """Choose among the daemon's decision endpoints the one for whoever reached its control socket at `control`.

    Same transport first; a wildcard host is the host by which the control socket was reached. Raises BadInput.
    """
    scheme = control.partition("://")[0]
    found = next((e for e in offered if e.startswith(f"{scheme}://")), None)
    if found is None:
        raise BadInput(f"{control}: the daemon publishes decisions at {', '.join(offered) or 'no endpoint'} only")
    host, _, port = found.removeprefix("tcp://").rpartition(":")
    if scheme == "tcp" and host in _WILDCARDS:
        return f"tcp://{control.removeprefix('tcp://').rpartition(':')[0]}:{port}"
    return found


def answer(payload: bytes) -> api.Response:
    """Decode an answer."""
    return msgspec.msgpack.decode(payload, type=api.Response)


def result(verb: str, response: api.Response) -> Any:  # noqa: ANN401  # each verb has its type
    """Return the verb's result. Raises Refused."""
    if not response.ok or isinstance(response.result, msgspec.UnsetType):
        fault = response.error
        raise Refused(
            api.Fault(code="not_done", message="no reason") if isinstance(fault, msgspec.UnsetType) else fault
        )
    return msgspec.msgpack.decode(response.result, type=api.VERBS[verb].result)


def leases(messages: Sequence[tuple[bytes, bytes]], tasks: Sequence[str]) -> list[api.Lease]:
    """Decode published decisions; a subscription to `t1` hears of `t10` too, which is left out."""
    found = [msgspec.json.decode(payload, type=api.Lease) for _, payload in messages]
    return [lease for lease in found if not tasks or lease.task in tasks]


def whatif_args(
    *,
    nodes_gone: Sequence[str] = (),
    cells_gone: Sequence[str] = (),
    more_prbs: Mapping[str, int] | None = None,
    more_hz: Mapping[str, float] | None = None,
    submit: Sequence[api.SubmitArgs] = (),
    copies: int = 1,
) -> api.WhatifArgs:
    """Put together a changed site."""
    return api.WhatifArgs(
        nodes_gone=tuple(nodes_gone),
        cells_gone=tuple(cells_gone),
        more_prbs=dict(more_prbs or {}),
        more_hz=dict(more_hz or {}),
        submit=tuple(submit),
        copies=copies,
    )


class Client(Connection):
    """Blocking client; not for use by several threads at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def call(self, verb: str, args: api.Args) -> Any:  # noqa: ANN401  # each verb has its type
        """Ask and wait for the answer. Raises Refused and NoAnswer."""
        number, payload = self.request(verb, args)
        self.socket.send(payload)
        end_s = time.monotonic() + self.timeout_s
        while (left_s := end_s - time.monotonic()) > 0 and self.socket.wait(left_s):
            for response in map(answer, self.socket.drain()):
                if response.id == number:  # an answer that came too late for its own call is passed over
                    return result(verb, response)
        raise self.silence(verb)

    def status(self) -> api.Status:
        """Mode, alarms, load, counts, delays, and the gain over the baseline."""
        found: api.Status = self.call("status", api.NoArgs())
        return found

    def submit(
        self, task: str, ue: str, work: LlmSession | VideoClip, *, weight: float = 1.0, fallback: str = "local"
    ) -> api.Lease:
        """Offer a task; the answer is its decision. Submitted again word for word, its present one."""
        args = api.SubmitArgs(task=task, ue=ue, work=work, weight=weight, fallback=fallback)
        found: api.Lease = self.call("submit", args)
        return found

    def release(self, task: str) -> api.Released:
        """Let a task go."""
        found: api.Released = self.call("release", api.TaskArgs(task=task))
        return found

    def list(self, prefix: str = "", limit: int = 1000) -> api.TaskList:
        """Accepted tasks whose id begins with `prefix`."""
        found: api.TaskList = self.call("list", api.ListArgs(prefix=prefix, limit=limit))
        return found

    def show(self, task: str) -> api.TaskView:
        """One accepted task."""
        found: api.TaskView = self.call("show", api.TaskArgs(task=task))
        return found

    def explain(self, task: str) -> api.Explanation:
        """Why a task has what it has or was refused, and what would change it."""
        found: api.Explanation = self.call("explain", api.TaskArgs(task=task))
        return found

    def whatif(self, args: api.WhatifArgs) -> api.WhatifResult:
        """Plan a changed site (`whatif_args`) without touching the live one."""
        found: api.WhatifResult = self.call("whatif", args)
        return found

    def policy(self, name: str = "") -> api.PolicyView:
        """Ask for the policy in force, or change it."""
        found: api.PolicyView = self.call("policy", api.PolicyArgs(policy=name))
        return found

    def drain(self) -> api.ModeView:
        """Take no new task."""
        found: api.ModeView = self.call("drain", api.NoArgs())
        return found

    def resume(self) -> api.ModeView:
        """Take tasks again."""
        found: api.ModeView = self.call("resume", api.NoArgs())
        return found

    def reload(self) -> api.Reloaded:
        """Read the configuration anew; a wrong one is refused as a whole."""
        found: api.Reloaded = self.call("reload", api.NoArgs())
        return found

    def follow(self, *tasks: str, timeout_s: float | None = None) -> Iterator[api.Lease]:
        """Yield the present decision of each task (none named: of all), then every change.

        Ends when nothing was published for `timeout_s`; None: never.
        """
        follower = self.follower(self.call("watch", api.NoArgs()), tasks)
        try:
            while follower.wait(1e6 if timeout_s is None else timeout_s):
                yield from leases(follower.drain(), tasks)
        finally:
            follower.close()
