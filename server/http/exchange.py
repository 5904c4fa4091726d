"""State of one request that middleware and routes share.

The outermost middleware creates an ``Exchange`` for each request and logs it at the end. Inner layers
record in it what they find out, such as the route or the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from starlette.types import Scope

import model
from server.auth.limits import Admission
from server.chat.completions import Envelope

UNMATCHED = "unmatched"  # route of paths that match no route


class Completion(Protocol):
    """What the access log needs of a completion."""

    @property
    def generation(self) -> model.Generation:
        """The engine's generation."""

    @property
    def envelope(self) -> Envelope:
        """Its id and its model's name."""


@dataclass
class Exchange:
    """What is known about a request so far.

    Attributes:
        request_id: the client's id, or a random one; None for CORS preflights, which are answered before
            ids are assigned.
        route: the route's template, such as ``/v1/models/{model_id}``.
        caller: the caller's name; None until it is authenticated.
        admission: the admission by the rate limiter; None if the route has no limits or the request was
            refused.
        completion: the completion of a request, once the engine has accepted it.
        relayed: whether a replica handles and logs the request in another process.
    """

    request_id: str | None = None
    route: str = UNMATCHED
    caller: str | None = None
    admission: Admission | None = None
    completion: Completion | None = None
    relayed: bool = False


def open_exchange(scope: Scope) -> Exchange:
    """Create the exchange of a request; called once, by the outermost middleware."""
    exchange = Exchange()
    scope.setdefault("state", {})["exchange"] = exchange
    return exchange


def exchange_of(scope: Scope) -> Exchange:
    """The exchange of a request."""
    return cast(Exchange, scope["state"]["exchange"])
