"""Rate limits of callers: requests and tokens per minute, and concurrent requests.

Rates are token buckets that refill evenly, so an idle caller may use a minute's share at once. Tokens
are reserved before a completion starts and settled when it ends. Call everything on the event loop.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from server.errors import ApiError, retry_after

RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{unit}"
    for unit in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
)
SOON = 1.0  # seconds; Retry-After for too many concurrent requests


@dataclass(frozen=True)
class Limits:
    """Limits of a caller; None means no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None


@dataclass(frozen=True)
class Caller:
    """A caller: the name of its key or Entra identity, and its limits."""

    name: str
    limits: Limits


class Bucket:
    """A token bucket that refills evenly over a minute. Its level may become negative."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = time.monotonic()

    @property
    def level(self) -> float:
        """The current level."""
        now = time.monotonic()
        refilled = self._level + (now - self._at) * self.per_minute / 60
        self._level, self._at = min(refilled, self.per_minute), now
        return self._level

    def take(self, amount: float) -> None:
        """Take an amount; a negative amount puts it back."""
        self._level = min(self.level - amount, self.per_minute)

    def seconds_until(self, amount: float) -> float:
        """Seconds until the level reaches the amount; 0 if it already has."""
        return max(0.0, (amount - self.level) * 60 / self.per_minute)


class Account:
    """The usage of one caller."""

    def __init__(self, limits: Limits) -> None:
        self.running = 0
        self.apply(limits)

    def apply(self, limits: Limits) -> None:
        """Set new limits, with full buckets."""
        self.limits = limits
        self.requests = _bucket(limits.requests_per_minute)
        self.tokens = _bucket(limits.tokens_per_minute)

    def headers(self) -> dict[str, str]:
        """The rate limit headers of OpenAI and Azure, for the limits that are set."""
        headers = {}
        for unit, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket is not None:
                headers[f"x-ratelimit-limit-{unit}"] = str(bucket.per_minute)
                headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, math.floor(bucket.level)))
                full = bucket.seconds_until(bucket.per_minute)
                headers[f"x-ratelimit-reset-{unit}"] = _duration(full)
        return headers


class Admission:
    """An admitted request. Close it when its response has been sent.

    Attributes:
        caller: the caller.
    """

    def __init__(self, caller: Caller, account: Account) -> None:
        self.caller = caller
        self._account = account
        self._bucket: Bucket | None = None  # of the reservation
        self._reserved = 0
        account.running += 1

    def headers(self) -> dict[str, str]:
        """The current rate limit headers."""
        return self._account.headers()

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Reserve tokens for a completion.

        A completion that may use more than a minute's tokens needs a full bucket and may overdraw it.

        Raises:
            ApiError: 429, the caller must wait, or the prompt alone exceeds a minute's tokens.
        """
        bucket = self._account.tokens
        if bucket is None:
            return
        limit = bucket.per_minute
        if prompt_tokens > limit:
            raise _refusal(
                f"the prompt has {prompt_tokens} tokens, but {self.caller.name} may use {limit} tokens "
                "per minute; send a shorter prompt",
                self._account,
                None,
            )
        wanted = min(prompt_tokens + completion_tokens, limit)
        wait = bucket.seconds_until(wanted)
        if wait > 0:
            raise _refusal(
                f"{self.caller.name} may use {limit} tokens per minute, and this request may need "
                f"{prompt_tokens} for its prompt and {completion_tokens} for its answer; lower "
                "max_tokens or try again later",
                self._account,
                wait,
            )
        bucket.take(wanted)
        self._bucket, self._reserved = bucket, wanted

    def settle(self, used: int) -> None:
        """Replace the reservation by the tokens actually used; later calls do nothing."""
        if self._bucket is not None:
            self._bucket.take(used - self._reserved)
            self._bucket = None

    def close(self) -> None:
        """End the request; returns tokens that are still reserved."""
        self.settle(0)
        self._account.running -= 1


class Limiter:
    """Enforces the limits of all callers."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def admit(self, caller: Caller) -> Admission:
        """Admit and count a request; raises a 429 ApiError if the caller must wait."""
        account = self._accounts.get(caller.name)
        if account is None:
            account = Account(caller.limits)
            if caller.limits == Limits():
                return Admission(caller, account)
            self._accounts[caller.name] = account
        elif account.limits != caller.limits:  # the key file has changed
            account.apply(caller.limits)
        limits, name = account.limits, caller.name
        most = limits.concurrent_requests
        if most is not None and account.running >= most:
            reason = f"{name} has reached its limit of concurrent requests ({most})"
            raise _refusal(f"{reason}; wait for one to finish", account, SOON)
        for unit, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            wait = 0.0 if bucket is None else bucket.seconds_until(1)
            if bucket is not None and wait > 0:
                reason = f"{name} has reached its limit of {unit} per minute ({bucket.per_minute})"
                raise _refusal(f"{reason}; try again later", account, wait)
        if account.requests is not None:
            account.requests.take(1)
        return Admission(caller, account)


def _bucket(per_minute: int | None) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute)


def _refusal(reason: str, account: Account, wait: float | None) -> ApiError:
    """A 429 with the time to wait; if that is None, it tells clients not to retry."""
    retry = {"x-should-retry": "false"} if wait is None else retry_after(wait)
    return ApiError(429, "rate_limit_exceeded", reason, headers={**account.headers(), **retry})


def _duration(seconds: float) -> str:
    """Format a duration like OpenAI: ``6m0s``, ``1.5s``."""
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
