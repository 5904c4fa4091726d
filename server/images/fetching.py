"""Fetches image files, only from hosts that the operator has listed.

A host name is resolved once, all its addresses must be public, and the client connects to one of them.
This prevents DNS rebinding; redirects and proxies are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx2

import model
from server.settings import DEFAULT_PORTS

HTTP = re.compile("https?://", re.IGNORECASE)
GLOBAL_UNICAST, VIA_6TO4 = IPv6Network("2000::/3"), IPv6Network("2002::/16")
INSTEAD = "send the image as data:image/png;base64,..."


class FetchError(model.ImageError):
    """The image could not be fetched, for a reason that may be transient."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is on the public internet and embeds no IPv4 address."""
    if isinstance(address, IPv6Address):
        return address.is_global and address in GLOBAL_UNICAST and address not in VIA_6TO4
    return address.is_global and not address.is_multicast


class Fetcher:
    """A client for the listed hosts.

    Args:
        hosts: ``HOST`` for the default ports, or ``HOST:PORT``.
        max_bytes: maximum size of a file.
        timeout: seconds to fetch a file, including name resolution and connecting.
    """

    def __init__(self, hosts: Sequence[str], max_bytes: int, timeout: float) -> None:
        self._hosts = {_origin(httpx2.URL(f"http://{host}")) for host in hosts}
        self._hosts |= {_origin(httpx2.URL(f"https://{host}")) for host in hosts}
        self._max_bytes = max_bytes
        self._timeout = timeout
        # A separate pool, so that a slow name server does not block other work.
        self._resolvers = ThreadPoolExecutor(4, "resolve")
        # The default context, so that SSL_CERT_FILE can add an authority.
        self._context = ssl.create_default_context() if hosts else None

    def allowed(self, url: str) -> httpx2.URL:
        """Parse the URL; raises model.ModalityError if it may not be fetched."""
        if not self._hosts:
            raise model.ModalityError(
                f"this server does not fetch images (--allow-image-hosts); {INSTEAD}"
            )
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise model.ModalityError(f"the image's URL is invalid; {INSTEAD}") from error
        if parsed.userinfo:
            raise model.ModalityError("the image's URL contains credentials; remove them")
        if _origin(parsed) not in self._hosts:
            raise model.ModalityError(
                f"this server does not fetch images from that host (--allow-image-hosts); {INSTEAD}"
            )
        return parsed

    async def __call__(self, url: httpx2.URL, hold: Callable[[int], None]) -> bytes:
        """Fetch the file at an allowed URL.

        Args:
            url: a URL returned by ``allowed``.
            hold: called with the size of each part of the file; its exceptions are propagated.

        Raises:
            FetchError: the host cannot be reached, fails, or takes too long.
            model.ImageError: the file does not exist or is too large.
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await self._fetch(url, hold)
        except TimeoutError as error:
            raise _not_fetched(
                url, f"it took longer than the limit of {self._timeout:g} seconds", FetchError
            ) from error
        except (httpx2.HTTPError, OSError, UnicodeError) as error:
            raise _not_fetched(url, str(error) or type(error).__name__, FetchError) from error

    async def _fetch(self, url: httpx2.URL, hold: Callable[[int], None]) -> bytes:
        assert self._context is not None  # without hosts, no URL is allowed
        addresses = await self._addresses(url)
        timeout = httpx2.Timeout(self._timeout, connect=self._timeout / len(addresses))
        # A new client for each file, so that no connection is reused for another host at the same address.
        async with httpx2.AsyncClient(
            verify=self._context, trust_env=False, follow_redirects=False, timeout=timeout
        ) as client:
            for address in addresses[:-1]:
                with contextlib.suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                    return await self._get(client, url, address, hold)
            return await self._get(client, url, addresses[-1], hold)

    async def _addresses(self, url: httpx2.URL) -> list[str]:
        """Resolve the URL's host; raises ImageError unless all its addresses are public."""
        loop, host = asyncio.get_running_loop(), _name(url)
        found = await loop.run_in_executor(
            self._resolvers, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        )
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        if not addresses or not all(is_public(ip_address(address)) for address in addresses):
            raise _not_fetched(url, "the host's address is not public")
        return addresses

    async def _get(
        self, client: httpx2.AsyncClient, url: httpx2.URL, address: str, hold: Callable[[int], None]
    ) -> bytes:
        """Fetch the file from one address of its host."""
        async with client.stream(
            "GET",
            url.copy_with(host=address),
            headers={
                "Host": url.netloc.decode("ascii"),
                "User-Agent": "phi3v-server",
                "Accept": "image/*",
                "Accept-Encoding": "identity",
            },
            extensions={
                "sni_hostname": _name(url)
            },  # also the name that the certificate must match
        ) as response:
            if response.is_redirect:
                raise _not_fetched(url, "the host redirects, and redirects are not followed")
            if response.status_code != 200:
                status = response.status_code
                kind = FetchError if status in (408, 429) or status >= 500 else model.ImageError
                raise _not_fetched(url, f"the host returned {status}", kind)
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise _not_fetched(url, "the host sent it compressed")
            declared = response.headers.get("content-length", "0")
            too_large = _not_fetched(url, f"it is larger than the limit of {self._max_bytes} bytes")
            if declared.isdigit() and int(declared) > self._max_bytes:
                raise too_large
            file = bytearray()
            async for part in response.aiter_raw():
                file += part
                if len(file) > self._max_bytes:
                    raise too_large
                hold(len(part))
            return bytes(file)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    """The scheme, host and port, by which URLs are allowed."""
    port = DEFAULT_PORTS.get(url.scheme) if url.port is None else url.port
    return url.scheme, _name(url), port


def _name(url: httpx2.URL) -> str:
    """The host in ASCII; ``url.host`` decodes to Unicode and fails on invalid ``xn--`` names."""
    return url.raw_host.decode("ascii").lower()


def _not_fetched(
    url: httpx2.URL, reason: str, kind: type[model.ImageError] = model.ImageError
) -> model.ImageError:
    return kind(f"failed to fetch the image from {_name(url)}: {reason}; {INSTEAD}")
