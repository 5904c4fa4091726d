"""Places for connections: so many for any request, and a reserve for those who ask after health."""

from __future__ import annotations

from typing import Generic, TypeVar

RESERVE = 32  # connections

Connection = TypeVar("Connection")


class Places(Generic[Connection]):
    """Who has which place.

    Args:
        limit: connections for any request.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._any: set[Connection] = set()
        self._silent: dict[Connection, None] = {}  # whose request has not come, the oldest first
        self._asking: set[Connection] = set()

    def take(self, connection: Connection) -> bool:
        """Have it a place for any request; False where there is none."""
        if len(self._any) >= self._limit:
            return False
        self._any.add(connection)
        return True

    def take_reserve(self, connection: Connection) -> Connection | None:
        """Have it a place of the reserve; the one that has to go for it, itself if all others ask."""
        if len(self._silent) + len(self._asking) < RESERVE:
            self._silent[connection] = None
            return None
        if not self._silent:
            return connection
        oldest = next(iter(self._silent))
        del self._silent[oldest]
        self._silent[connection] = None
        return oldest

    def ask(self, connection: Connection) -> None:
        """Its request has come: it keeps its place of the reserve."""
        if connection in self._silent:
            del self._silent[connection]
            self._asking.add(connection)

    def leave(self, connection: Connection) -> None:
        """Give back the place that it has, if it has one."""
        self._any.discard(connection)
        self._silent.pop(connection, None)
        self._asking.discard(connection)
