"""Hosts as settings and requests name them: names or addresses, with ports or without."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import NamedTuple

DEFAULT_PORTS = {"http": 80, "https": 443}
HOST = re.compile(r"(?:([A-Za-z0-9._-]+)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?")


class Host(NamedTuple):
    """A name in lower case or an address without brackets, and the port if one is given."""

    name: str
    port: int | None


def parse_host(text: str) -> Host | None:
    """The host that a text names; None where it names none."""
    match = HOST.fullmatch(text)
    if match is None or int(match[3] or 0) > 65535:
        return None
    port = int(match[3]) if match[3] else None
    if match[2] is None:
        return Host(match[1].lower().removesuffix("."), port)
    try:
        return Host(str(ip_address(match[2])), port)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether a name or an address to listen on is for this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
