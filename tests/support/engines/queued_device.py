"""A device that works through a queue, like a GPU, with a simulated clock."""

from __future__ import annotations

from typing import Self


class QueuedDevice:
    """See ``model.engine.execution.device_clock.DeviceClock``.

    Attributes:
        host: the host's time, in seconds.
        free: when the device will have done all that is queued.
    """

    queues = True

    def __init__(self) -> None:
        self.host = 0.0
        self.free = 0.0

    def host_time(self) -> float:
        return self.host

    def launch(self, seconds: float, host: float) -> None:
        """Queue work that takes the device ``seconds``; launching it takes the host a while."""
        self.free = max(self.free, self.host) + seconds
        self.host += host

    def mark(self) -> QueuedMark:
        return QueuedMark(self)


class QueuedMark:
    """A mark in its queue."""

    def __init__(self, device: QueuedDevice) -> None:
        self._device = device
        self._at = max(device.free, device.host)
        self._waited = False

    def wait(self) -> None:
        self._device.host = max(self._device.host, self._at)
        self._waited = True

    def since(self, earlier: Self) -> float:
        assert self._waited, "nobody has waited for the mark"
        return self._at - earlier._at
