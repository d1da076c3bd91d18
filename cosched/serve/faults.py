"""What a client is told when it does not get an answer: status, and OpenAI's error object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from cosched.api.messages import Lease
from cosched.core.reasons import Reason, describe
from cosched.errors import CoschedError

INVALID: Final = "invalid_request_error"
LIMITED: Final = "rate_limit_error"
UNAVAILABLE: Final = "server_error"

# Refusals that may be over as soon as somebody else ends.
WAITABLE: Final = frozenset(
    {Reason.REJECTED_NO_CAPACITY, Reason.REJECTED_BID_PRICE, Reason.REJECTED_DEVICE_BUSY, Reason.REJECTED_NOT_LOADED}
)
AGAIN_S: Final[Mapping[str, float]] = {  # when it is worth asking again
    Reason.REJECTED_NO_CAPACITY: 1.0,
    Reason.REJECTED_DEVICE_BUSY: 1.0,
    Reason.REJECTED_BID_PRICE: 2.0,
    Reason.REJECTED_NOT_LOADED: 5.0,
}
HOPELESS_S: Final = 60.0  # the same request will be refused again: its deadlines cannot be held
UNREACHED_S: Final = 2.0


class ServeFault(CoschedError):
    """An answer that is an error. code: for programs; `again_s`: when asking again makes sense, 0 never says."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        again_s: float = 0.0,
        again: bool = True,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.kind, self.param = status, code, kind, param
        self.again_s, self.again = again_s, again

    @property
    def body(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Return what goes with it; `x-should-retry` is read by OpenAI's clients."""
        found = {"x-should-retry": "true" if self.again else "false"} if self.again_s or not self.again else {}
        if self.again_s:
            found["retry-after"] = str(math.ceil(self.again_s))
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


def bad(message: str, param: str | None = None, code: str = "invalid_value") -> ServeFault:
    """Return the answer to a request that is wrong."""
    return ServeFault(400, code, message, param=param)


def refused(lease: Lease) -> ServeFault:
    """Return the answer to a request that the daemon did not accept: 429, or 503 where the site is at fault."""
    text = lease.text or describe(lease.reason)
    if lease.reason in {Reason.REJECTED_NO_CHANNEL, Reason.STALE}:
        mend = "report its channel on the telemetry bus, or name it in [wired]"
        return unavailable(lease.reason, f"{text} UE '{lease.ue}': {mend}")
    hopeless = lease.reason == Reason.REJECTED_NO_POINT
    again_s = HOPELESS_S if hopeless else AGAIN_S.get(lease.reason, 1.0)
    return ServeFault(429, lease.reason, text, kind=LIMITED, again_s=again_s, again=not hopeless)


def limited(code: str, message: str, again_s: float) -> ServeFault:
    """Return the answer to who asks too much."""
    return ServeFault(429, code, message, kind=LIMITED, again_s=again_s)


def unavailable(code: str, message: str) -> ServeFault:
    """Return the answer where the daemon or a node cannot do it now."""
    return ServeFault(503, code, message, kind=UNAVAILABLE, again_s=UNREACHED_S)
