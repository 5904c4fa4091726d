"""Limits open connections, with a reserve for health probes beyond the limit."""

from __future__ import annotations

from typing import Generic, TypeVar

RESERVE = 32  # connections

Connection = TypeVar("Connection")


class ConnectionLimit(Generic[Connection]):
    """Counts open connections and those in the reserve.

    Args:
        limit: maximum connections for requests of any kind.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._admitted: set[Connection] = set()
        # The reserve: connections without a request so far, oldest first, and health probes.
        self._silent: dict[Connection, None] = {}
        self._probes: set[Connection] = set()

    def admit(self, connection: Connection) -> bool:
        """Admit a connection for requests of any kind; returns False at the limit."""
        if len(self._admitted) >= self._limit:
            return False
        self._admitted.add(connection)
        return True

    def admit_to_reserve(self, connection: Connection) -> Connection | None:
        """Admit a connection for a health probe.

        Returns:
            the connection to close if the reserve is full: the oldest without a request, or this one if
            all others are probes.
        """
        if len(self._silent) + len(self._probes) < RESERVE:
            self._silent[connection] = None
            return None
        if not self._silent:
            return connection
        oldest = next(iter(self._silent))
        del self._silent[oldest]
        self._silent[connection] = None
        return oldest

    def keep(self, connection: Connection) -> None:
        """Keep a connection in the reserve, because its request is a health probe."""
        if connection in self._silent:
            del self._silent[connection]
            self._probes.add(connection)

    def release(self, connection: Connection) -> None:
        """Stop counting a connection; does nothing if it was not admitted."""
        self._admitted.discard(connection)
        self._silent.pop(connection, None)
        self._probes.discard(connection)
