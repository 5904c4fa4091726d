"""One request and its response: what the parts of the server that handle it tell one another.

The outermost middleware makes an ``Exchange`` for each request and logs it at the end. Whoever learns
something on the way, such as the route or who the caller is, notes it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from starlette.types import Scope

from server.auth.limits import Admission
from server.chat.prepare import RunningCompletion

UNMATCHED = "unmatched"  # the route of a path that has none


@dataclass
class Exchange:
    """What is known of a request so far.

    Attributes:
        request_id: the client's own, or else a random one; None for CORS preflights, which the
            middleware outside of request ids responds to.
        route: template of its route, such as ``/v1/models/{model_id}``.
        caller: the name of who sends it; None until the key or token is checked.
        admission: its place among the caller's requests, whose limits the response's headers report;
            None unless it is of a route with limits and was let in.
        completion: of a chat request, from when the engine has taken it.
        relayed: whether a replica responds to it, in a process of its own, and logs it there.
    """

    request_id: str | None = None
    route: str = UNMATCHED
    caller: str | None = None
    admission: Admission | None = None
    completion: RunningCompletion | None = None
    relayed: bool = False


def open_exchange(scope: Scope) -> Exchange:
    """Make the exchange of a request; done once, by the outermost middleware."""
    exchange = Exchange()
    scope.setdefault("state", {})["exchange"] = exchange
    return exchange


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that a request belongs to."""
    return cast(Exchange, scope["state"]["exchange"])
