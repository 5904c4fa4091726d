"""Tokens of Entra ID, by an issuer of our own over TLS and Azure's SDK for Python."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
import trustme
from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.models import ChatRequestMessage, UserMessage
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.peers.entra_issuer import AUDIENCE, TENANT, EntraIssuer
from tests.support.servers.live_server import LiveServer, check_log, start_server
from tests.support.servers.wire import check_error


@pytest.fixture(scope="module")
def issuer(
    authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EntraIssuer]:
    issuer = EntraIssuer(authority, tmp_path_factory.mktemp("issuer"))
    yield issuer
    issuer.stop()


@pytest.fixture(scope="module")
def live(
    tiny: Path,
    authority: trustme.CA,
    issuer: EntraIssuer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("certificates")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    live = start_server(
        *("--model", str(tiny), "--ssl-certfile", str(folder / "server.pem")),
        *("--entra-tenant", TENANT, "--entra-audience", f"other,{AUDIENCE}"),
        *("--entra-authority", issuer.url),
        *("--entra-roles", "Chat.Use,Chat.Admin", "--entra-scopes", "chat"),
        *("--requests-per-minute", "1000"),
        PHI3V_API_KEY="the-key",
        SSL_CERT_FILE=str(issuer.certificates),
    )
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


class Credential:
    """A TokenCredential of azure-core's protocol."""

    def __init__(self, issuer: EntraIssuer, **claims: Any) -> None:
        self._issuer, self._claims = issuer, claims
        self.scopes: list[str] = []

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.scopes += scopes
        return AccessToken(self._issuer.token(**self._claims), int(time.time()) + 600)


def ask(live: LiveServer, issuer: EntraIssuer, token: str) -> httpx2.Response:
    context = ssl.create_default_context(cafile=issuer.certificates)
    headers = {"Authorization": f"Bearer {token}"}
    return httpx2.get(f"{live.url}/info", headers=headers, verify=context, timeout=60)


def client(live: LiveServer, issuer: EntraIssuer, credential: Credential) -> ChatCompletionsClient:
    return ChatCompletionsClient(
        live.url,
        credential,
        credential_scopes=[f"{AUDIENCE}/.default"],
        connection_verify=str(issuer.certificates),
    )


def test_azures_sdk_with_a_token_credential(live: LiveServer, issuer: EntraIssuer) -> None:
    credential = Credential(issuer)
    asking = client(live, issuer, credential)
    question: list[ChatRequestMessage] = [UserMessage("How many languages are in the world?")]
    assert asking.get_model_info().model_name == "phi3v-tiny"
    assert asking.complete(messages=question, max_tokens=3).usage.completion_tokens
    assert list(asking.complete(messages=question, max_tokens=3, stream=True))[-1].usage
    assert set(credential.scopes) == {f"{AUDIENCE}/.default"}
    refusals: list[tuple[dict[str, Any], type[HttpResponseError], int]] = [
        ({"aud": "api://another"}, ClientAuthenticationError, 401),
        ({"roles": ["Other"]}, HttpResponseError, 403),
    ]
    for claims, error, status in refusals:
        with pytest.raises(error) as refused:
            client(live, issuer, Credential(issuer, **claims)).complete(messages=question)
        assert refused.value.status_code == status


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"iss": f"https://sts.example/{TENANT}/"},  # a token of the older version
        {"aud": "other"},
        {"exp": int(time.time()) - 30, "nbf": None, "iat": None},  # clocks differ
        {"roles": None, "scp": "openid chat"},
        {"oid": None},
    ],
    ids=lambda changed: "-".join(changed) or "unchanged",  # each process must find the same ones
)
def test_good_tokens(live: LiveServer, issuer: EntraIssuer, changed: dict[str, Any]) -> None:
    if "exp" in changed:
        changed = {**changed, "exp": int(time.time()) - 30}
    response = ask(live, issuer, issuer.token(**changed))
    assert response.status_code == 200, response.text


def test_keys_are_taken_beside_tokens(live: LiveServer, issuer: EntraIssuer) -> None:
    assert ask(live, issuer, "the-key").status_code == 200
    refused = check_error(ask(live, issuer, "another-key"), 401, "Unauthorized", [])
    assert "API key or Entra token is missing or wrong" in refused["message"]


def stranger(issuer: EntraIssuer) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return jwt.encode(issuer.claims(), key, "RS256", {"kid": next(iter(issuer.keys))})


def symmetric(issuer: EntraIssuer) -> str:
    """Signed with what everybody knows, as if that were a secret."""
    return jwt.encode(issuer.claims(), "public" * 8, "HS256", {"kid": next(iter(issuer.keys))})


BAD: dict[str, tuple[Callable[[EntraIssuer], str], str]] = {
    "expired": (lambda i: i.token(exp=int(time.time()) - 90), "it has expired"),
    "not yet": (lambda i: i.token(nbf=int(time.time()) + 300), "not yet valid"),
    "audience": (
        lambda i: i.token(aud="api://another"),
        "request a token for other or api://phi3v",
    ),
    "issuer": (lambda i: i.token(iss="https://elsewhere.example"), "Invalid issuer"),
    "tenant": (lambda i: i.token(tid=TENANT[::-1]), "it was issued by another tenant"),
    "no tenant": (lambda i: i.token(tid=None), '"tid"'),
    "no expiry": (lambda i: i.token(exp=None), '"exp"'),
    "nobody": (lambda i: i.token(oid=None, sub=None), "it identifies no caller"),
    "signature": (stranger, "Signature verification failed"),
    "symmetric": (symmetric, "alg value is not allowed"),
    "unsigned": (
        lambda i: jwt.encode(i.claims(), "", "none", {"kid": next(iter(i.keys))}),
        "alg value is not allowed",
    ),
    "no key id": (
        lambda i: jwt.encode(i.claims(), i.keys[next(iter(i.keys))], "RS256"),
        "no signing key",
    ),
    "garbage": (lambda _: "a.b.c", "the token is invalid: "),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tokens(live: LiveServer, issuer: EntraIssuer, name: str) -> None:
    make, reason = BAD[name]
    refused = ask(live, issuer, make(issuer))
    assert reason in check_error(refused, 401, "Unauthorized", [])["message"]
    assert refused.headers["www-authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.parametrize("changed", [{"roles": None}, {"roles": "Chat.Use"}, {"scp": "chatter"}])
def test_tokens_without_a_role_or_scope(
    live: LiveServer, issuer: EntraIssuer, changed: dict[str, Any]
) -> None:
    refused = ask(live, issuer, issuer.token(**{"roles": [], **changed}))
    body = check_error(refused, 403, "Forbidden", [])
    assert "none of the roles Chat.Admin, Chat.Use or scopes chat" in body["message"]
    assert refused.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'


def test_a_new_key_is_fetched_when_it_is_used(live: LiveServer, issuer: EntraIssuer) -> None:
    assert ask(live, issuer, issuer.token()).status_code == 200
    before, old = len(issuer.asked), issuer.token()
    issuer.rotate("second")
    assert ask(live, issuer, old).status_code == 200  # its key is still known
    assert len(issuer.asked) == before
    assert ask(live, issuer, issuer.token()).status_code == 200
    assert len(issuer.asked) == before + 4  # two documents, each with its keys
    assert ask(live, issuer, old).status_code == 401  # withdrawn
