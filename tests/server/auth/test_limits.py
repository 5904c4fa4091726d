"""What each caller may use, and what it is told of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from server.auth import limits
from server.auth.limits import Bucket, Caller, Limiter, Limits
from server.errors import ApiError
from tests.support.servers.live_server import LiveServer, check_log, start_server
from tests.support.servers.wire import HELLO
from tests.support.waiting import eventually

KEYS = """
free = "free-key"
[few]
key = "few-key"
requests-per-minute = 2
[short]
key = "short-key"
tokens-per-minute = 600
[long]
key = "long-key"
tokens-per-minute = 6000
[single]
key = "single-key"
concurrent-requests = 1
"""


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


def test_a_bucket_refills_evenly_and_no_further(clock: Clock) -> None:
    bucket = Bucket(120)
    bucket.take(121)
    assert bucket.level == -1
    assert bucket.seconds_until(1) == 1
    clock.now += 1
    assert (bucket.level, bucket.seconds_until(1)) == (1, 0)
    clock.now += 1000
    assert bucket.level == 120


def test_requests_a_minute(clock: Clock) -> None:
    limiter, caller = Limiter(), Caller("alice", Limits(requests_per_minute=2))
    for left in (1, 0):
        admission = limiter.admit(caller)
        assert admission.headers()["x-ratelimit-remaining-requests"] == str(left)
        admission.close()
    with pytest.raises(ApiError) as refused:
        limiter.admit(caller)
    assert refused.value.status == 429
    assert refused.value.headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
        "Retry-After": "30",
    }
    limiter.admit(Caller("bob", caller.limits))  # who has a minute of his own
    clock.now += 29.9
    with pytest.raises(ApiError):
        limiter.admit(caller)
    clock.now += 0.1
    assert limiter.admit(caller).headers()["x-ratelimit-reset-requests"] == "1m0s"


def test_tokens_are_reserved_and_settled_once(clock: Clock) -> None:
    limiter, caller = Limiter(), Caller("alice", Limits(tokens_per_minute=600))
    first = limiter.admit(caller)
    first.reserve(100, 300)
    assert first.headers()["x-ratelimit-remaining-tokens"] == "200"
    second = limiter.admit(caller)
    with pytest.raises(ApiError, match="lower max_tokens") as refused:
        second.reserve(100, 120)
    assert refused.value.headers["Retry-After"] == "2"  # for 20 tokens at ten a second
    second.close()
    first.settle(150)
    first.settle(0)
    first.close()
    assert first.headers()["x-ratelimit-remaining-tokens"] == "450"
    failed = limiter.admit(caller)
    failed.reserve(10, 10)
    failed.close()  # without an answer
    assert failed.headers()["x-ratelimit-remaining-tokens"] == "450"
    clock.now += 2
    assert failed.headers()["x-ratelimit-remaining-tokens"] == "470"
    assert failed.headers()["x-ratelimit-reset-tokens"] == "13s"


def test_a_long_answer_is_a_debt(clock: Clock) -> None:
    """It may be begun with a full bucket, and its caller waits until all of it is refilled."""
    limiter, caller = Limiter(), Caller("alice", Limits(tokens_per_minute=60))
    admission = limiter.admit(caller)
    admission.reserve(50, 4096)
    admission.settle(90)
    admission.close()
    assert admission.headers()["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(ApiError, match=r"tokens per minute \(60\)") as refused:
        limiter.admit(caller)
    assert refused.value.headers["Retry-After"] == "31"
    clock.now += 31
    limiter.admit(caller)


def test_a_prompt_that_never_fits_is_not_worth_another_try() -> None:
    admission = Limiter().admit(Caller("alice", Limits(tokens_per_minute=60)))
    with pytest.raises(ApiError, match="61 tokens, but alice may use 60") as refused:
        admission.reserve(61, 1)
    assert refused.value.headers["x-should-retry"] == "false"
    assert "Retry-After" not in refused.value.headers


def test_changed_limits_hold_from_then_on() -> None:
    limiter = Limiter()
    running = limiter.admit(Caller("alice", Limits(concurrent_requests=1)))
    with pytest.raises(ApiError, match=r"limit of concurrent requests \(1\)"):
        limiter.admit(Caller("alice", Limits(concurrent_requests=1)))
    changed = Caller("alice", Limits(requests_per_minute=5, concurrent_requests=2))
    other = limiter.admit(changed)
    assert other.headers()["x-ratelimit-remaining-requests"] == "4"
    with pytest.raises(ApiError):
        limiter.admit(changed)
    running.close()
    limiter.admit(changed)


def test_a_closed_request_leaves_its_place_to_the_next(clock: Clock) -> None:
    limiter = Limiter()
    caller = Caller("alice", Limits(10**9, 10**9, concurrent_requests=1))
    for number in range(1, 101):
        admission = limiter.admit(caller)
        admission.reserve(10, 10)
        admission.settle(10)
        admission.close()
        assert admission.headers()["x-ratelimit-remaining-tokens"] == str(10**9 - 10 * number)


@pytest.fixture(scope="module")
def live(tiny: Path) -> Iterator[LiveServer]:
    live = start_server("--model", str(tiny), "--open-metrics", PHI3V_API_KEYS=KEYS)
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


def arguments(name: str, **body: Any) -> dict[str, Any]:
    body = {"messages": HELLO, "max_tokens": 3, "ignore_eos": True, **body}
    return {"json": body, "headers": {"api-key": f"{name}-key"}, "timeout": 120}


def ask(live: LiveServer, name: str, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{live.url}/v1/chat/completions", **arguments(name, **body))


def tokenize(live: LiveServer, name: str) -> httpx2.Response:
    """A request that takes no tokens."""
    headers = {"api-key": f"{name}-key"}
    return httpx2.post(f"{live.url}/tokenize", json={"prompt": "x"}, headers=headers, timeout=120)


def remaining(response: httpx2.Response, unit: str) -> int:
    return int(response.headers[f"x-ratelimit-remaining-{unit}"])


def is_refused(response: httpx2.Response) -> None:
    body = response.json()
    assert response.status_code == 429
    assert response.headers["x-ms-error-code"] == "rate_limit_exceeded"
    assert body["error"]["code"] == body["code"] == "rate_limit_exceeded"
    assert body["error"]["type"] == "rate_limit_error"
    assert int(response.headers["retry-after"]) >= 1


def test_a_caller_without_limits_is_told_of_none(live: LiveServer) -> None:
    response = ask(live, "free")
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]


def test_requests_are_counted_also_bad_ones(live: LiveServer) -> None:
    bad = ask(live, "few", temperature=9)
    assert bad.status_code == 422
    assert bad.headers["x-ratelimit-limit-requests"] == "2"
    assert remaining(bad, "requests") == 1
    counted = [tokenize(live, "few") for _ in range(5)]  # one comes back every half minute
    assert all(one.headers["x-ratelimit-reset-requests"].endswith("s") for one in counted)
    is_refused(next(one for one in counted if one.status_code != 200))
    question: ChatCompletionUserMessageParam = {"role": "user", "content": "hello"}
    with (
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="few-key", max_retries=0) as client,
        pytest.raises(
            openai.RateLimitError, match="few has reached its limit of requests per minute"
        ),
    ):
        client.chat.completions.create(model="any", messages=[question])
    assert httpx2.get(f"{live.url}/info", headers={"api-key": "few-key"}).status_code == 200


def test_tokens_are_those_of_the_usage_and_of_cut_off_streams(live: LiveServer) -> None:
    began = time.monotonic()

    def refilled() -> float:
        return 100 * (time.monotonic() - began)

    whole = ask(live, "long")
    assert whole.headers["x-ratelimit-limit-tokens"] == "6000"
    used = whole.json()["usage"]["total_tokens"]
    assert 0 <= remaining(whole, "tokens") - (6000 - used) <= refilled() + 1
    prompt_tokens = whole.json()["usage"]["prompt_tokens"]

    eventually(lambda: remaining(tokenize(live, "long"), "tokens") == 6000)
    url = f"{live.url}/v1/chat/completions"
    more = arguments("long", max_tokens=5000, stream=True)
    began = time.monotonic()
    with httpx2.stream("POST", url, **more) as response:
        during = remaining(response, "tokens")
        assert 0 <= during - (6000 - prompt_tokens - 5000) <= refilled() + 1
        lines = response.iter_lines()  # held: it hangs up when it is dropped
        next(lines)
        another = ask(live, "long", max_tokens=5500)
        is_refused(another)
        assert "long may use 6000 tokens per minute" in another.json()["message"]
    # Until it has heard that the reader is gone: more comes back than time brings.
    eventually(
        lambda: remaining(tokenize(live, "long"), "tokens") > during + refilled() + 50,
    )
    for _ in range(3):  # a stream that ends by itself too
        assert ask(live, "long", stream=True).text.endswith("data: [DONE]\n\n")


def test_a_prompt_of_more_than_a_minute(live: LiveServer) -> None:
    refused = ask(live, "short", messages=[{"role": "user", "content": "word " * 700}])
    assert refused.status_code == 429
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert "send a shorter prompt" in refused.json()["message"]


def test_one_request_at_a_time(live: LiveServer) -> None:
    url = f"{live.url}/v1/chat/completions"
    more = arguments("single", max_tokens=3000, stream=True)
    with httpx2.stream("POST", url, **more) as response:
        lines = response.iter_lines()
        next(lines)
        refused = ask(live, "single")
        is_refused(refused)
        assert refused.headers["retry-after"] == "1"
    eventually(lambda: ask(live, "single").status_code == 200)


def test_refused_requests_leave_nothing_behind(live: LiveServer) -> None:
    nobody = "phi3v_num_requests_running 0.0"
    eventually(lambda: nobody in httpx2.get(f"{live.url}/metrics").text)
