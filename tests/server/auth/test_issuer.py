"""The issuer's keys: when they are fetched, and what becomes of tokens when they cannot be had."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme

from server.auth import issuer as issuer_module
from server.auth.entra import Entra
from server.auth.issuer import Issuer
from server.errors import ApiError
from tests.support.peers.entra_issuer import AUDIENCE, OBJECT_ID, TENANT, EntraIssuer
from tests.support.waiting import eventually_async


@pytest.fixture
def own(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EntraIssuer]:
    """An issuer that a test may break, trusted by this process."""
    issuer = EntraIssuer(authority, tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(issuer.certificates))
    yield issuer
    issuer.stop()


def checker(issuer: EntraIssuer) -> Entra:
    return Entra(Issuer(issuer.url, TENANT), TENANT, [AUDIENCE])


async def refusal(entra: Entra, token: str) -> ApiError:
    with pytest.raises(ApiError) as refused:
        await entra.name(token)
    return refused.value


def forged(issuer: EntraIssuer, kid: str) -> str:
    return jwt.encode(issuer.claims(), next(iter(issuer.keys.values())), "RS256", {"kid": kid})


def test_made_up_key_ids_do_not_reach_the_issuer_each_time(own: EntraIssuer) -> None:
    async def attack() -> None:
        entra = checker(own)
        assert await entra.name(own.token()) == f"entra:{OBJECT_ID}"
        for i in range(50):
            assert (await refusal(entra, forged(own, f"made-up-{i}"))).status == 401
        assert await entra.name(own.token()) == f"entra:{OBJECT_ID}"

    asyncio.run(attack())
    assert len(own.asked) <= 4 * issuer_module.FETCHES_PER_MINUTE + 4


def test_callers_at_once_wait_for_one_fetch(own: EntraIssuer) -> None:
    async def at_once() -> None:
        entra, token = checker(own), own.token()
        names = await asyncio.gather(*(entra.name(token) for _ in range(20)))
        assert set(names) == {f"entra:{OBJECT_ID}"}

    asyncio.run(at_once())
    assert len(own.asked) == 4


def test_a_dead_issuer(own: EntraIssuer) -> None:
    """What is known goes on; the rest is a 503, quickly."""

    async def die() -> None:
        entra = checker(own)
        await entra.name(own.token())
        own.stop()
        for _ in range(20):
            error = await refusal(entra, forged(own, "unknown"))
            assert (error.status, error.code) == (503, "issuer_unavailable")
            assert "the token cannot be verified: the issuer" in error.message
            assert int(error.headers["Retry-After"]) >= 1
        assert await entra.name(own.token()) == f"entra:{OBJECT_ID}"
        fresh = checker(own)
        assert (await refusal(fresh, own.token())).status == 503

    asyncio.run(die())


def test_a_silent_issuer_holds_up_nobody_else(
    own: EntraIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "FETCH_TIMEOUT", 5.0)

    async def wait() -> None:
        entra = checker(own)
        await entra.name(own.token())
        own.answers.clear()
        waiting = asyncio.create_task(refusal(entra, forged(own, "unknown")))
        await eventually_async(lambda: len(own.asked) == 5)
        for _ in range(5):
            await entra.name(own.token())
        assert not waiting.done()
        assert "no response within 5 seconds" in (await waiting).message

    asyncio.run(wait())


def test_keys_are_looked_for_again_after_an_hour(
    own: EntraIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def grow_old() -> None:
        entra, token = checker(own), own.token()
        await entra.name(token)
        monkeypatch.setattr(issuer_module, "MAX_AGE", 0.0)
        own.rotate("second")
        await entra.name(token)  # does not wait
        await entra.name(own.token())  # waits for the same fetch
        assert len(own.asked) == 8
        monkeypatch.setattr(issuer_module, "MAX_AGE", 3600.0)
        assert (await refusal(entra, token)).status in (401, 503)

    asyncio.run(grow_old())


DISCOVERY = f"/{TENANT}/v2.0/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("path", "document", "reason"),
    [
        (DISCOVERY, [], "is not a JSON object"),
        (DISCOVERY, {"issuer": "https://other.example"}, "the issuer of another tenant"),
        (DISCOVERY, {"issuer": TENANT, "jwks_uri": "http://plain.example"}, "not https"),
        ("/keys", {"keys": [{"kty": "RSA", "kid": "x", "n": "!"}, 5]}, "no signing keys"),
        ("/keys", {"keys": "x" * 2_000_000}, "larger than 1000000 bytes"),
    ],
)
def test_an_issuer_that_answers_nonsense(
    own: EntraIssuer, path: str, document: Any, reason: str
) -> None:
    own.more[path] = document
    error = asyncio.run(refusal(checker(own), own.token()))
    assert error.status == 503
    assert reason in error.message
