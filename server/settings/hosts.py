"""Parses hosts in settings and headers: names or addresses, with or without a port."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import NamedTuple

DEFAULT_PORTS = {"http": 80, "https": 443}
HOST = re.compile(r"(?:([A-Za-z0-9._-]+)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?")


class Host(NamedTuple):
    """A lower-case name or an address without brackets, and a port if given."""

    name: str
    port: int | None


def parse_host(text: str) -> Host | None:
    """Parse a host; returns None if it is invalid."""
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
    """Whether a name or address is reachable only from this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
