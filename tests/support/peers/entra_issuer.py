"""An issuer like Entra's for one tenant, over TLS on this machine."""

from __future__ import annotations

import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa

TENANT = "3a0f4a2e-1d5c-4f6b-9d0e-8c7b6a594837"
AUDIENCE = "api://phi3v"
OBJECT_ID = "9f1d2c3b-0000-4000-8000-000000000001"


class EntraIssuer:
    """Serves discovery documents and keys, and signs tokens with the newest of its keys.

    Attributes:
        url: the authority.
        asked: the paths that were asked for.
        hangs: answers nothing until it is set.
    """

    def __init__(self, authority: trustme.CA, folder: Path) -> None:
        self.keys: dict[str, rsa.RSAPrivateKey] = {}
        self.asked: list[str] = []
        self.answers = threading.Event()
        self.answers.set()
        self.more: dict[str, Any] = {}  # documents by path, instead of the right ones
        self.rotate("first")
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                issuer.answers.wait(30)
                body = json.dumps(issuer.document(self.path)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.certificates = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.certificates))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()

    def rotate(self, kid: str) -> None:
        """Have one key, a new one."""
        self.keys = {kid: rsa.generate_private_key(public_exponent=65537, key_size=2048)}

    @property
    def names(self) -> dict[str, str]:
        """The issuer of each version."""
        return {"/v2.0": f"{self.url}/{TENANT}/v2.0", "": f"https://sts.example/{TENANT}/"}

    def document(self, path: str) -> Any:
        """What is at that path."""
        if path in self.more:
            return self.more[path]
        for version, name in self.names.items():
            if path == f"/{TENANT}{version}/.well-known/openid-configuration":
                return {"issuer": name, "jwks_uri": f"{self.url}/keys"}
        assert path == "/keys", path
        listed = [
            jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
            | {"kid": kid, "use": "sig"}
            for kid, key in self.keys.items()
        ]
        # Entra's keys name no alg; those for other uses are to be passed over.
        for key in listed:
            key.pop("alg", None)
            key.pop("key_ops", None)
        return {"keys": [{"kty": "EC", "kid": "other", "use": "enc"}, *listed]}

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Of a good token; None leaves a claim out."""
        now = int(time.time())
        claims = {
            "iss": self.names["/v2.0"],
            "aud": AUDIENCE,
            "tid": TENANT,
            "oid": OBJECT_ID,
            "sub": "subject",
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            "roles": ["Chat.Use"],
            **changed,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, **changed: Any) -> str:
        """Signed with the newest key."""
        kid, key = next(reversed(self.keys.items()))
        return jwt.encode(self.claims(**changed), key, "RS256", {"kid": kid})
