"""How long work takes on a device.

A GPU works through a queue: launching a kernel returns at once, so the host's clock around launches says
little. Marks in the queue tell when the device got there. On the CPU work is done when the call returns,
and a mark is simply the time.
"""

from __future__ import annotations

import time
from typing import Protocol, Self

import torch


class Mark(Protocol):
    """A point in a device's queue of work."""

    def wait(self) -> None:
        """Wait until the device has done all work queued before the mark."""
        ...

    def since(self, earlier: Self) -> float:
        """Seconds on the device since an earlier mark; call ``wait`` first."""
        ...


class DeviceClock(Protocol):
    """Makes the marks of one device.

    Attributes:
        queues: whether launching returns before the work is done.
    """

    queues: bool

    def mark(self) -> Mark:
        """Add a mark after all work queued so far."""
        ...


class _HostMark:
    def __init__(self) -> None:
        self._time = time.perf_counter()

    def wait(self) -> None:
        pass

    def since(self, earlier: Self) -> float:
        return self._time - earlier._time


class HostClock:
    """The clock of a CPU; see ``DeviceClock``."""

    queues = False

    def mark(self) -> Mark:
        """See ``DeviceClock``."""
        return _HostMark()


class _CudaMark:
    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        self._event.synchronize()

    def since(self, earlier: Self) -> float:
        return earlier._event.elapsed_time(self._event) / 1000


class CudaClock:
    """The clock of a GPU's current stream; see ``DeviceClock``."""

    queues = True

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Mark:
        """See ``DeviceClock``."""
        return _CudaMark(self._device)


def clock_of(device: torch.device) -> DeviceClock:
    """The clock of a device; of several GPUs, take the one where steps begin and end."""
    return CudaClock(device) if device.type == "cuda" else HostClock()


class StepTimer:
    """Measures steps: what their work takes, not how long it waits behind other work.

    On a GPU that is the longer of two times. The device's time, from the first launch to the end of the
    last kernel, is what streams wait for if the device is busy. If launching takes longer, the host
    decides when the next step begins, even when the device, still busy with a part of the vision tower,
    then runs through this step's kernels without a pause. What the host does before and after the
    launches, and how long the step waits for the tower's part, belong to neither.

    Args:
        clock: of the device.
    """

    def __init__(self, clock: DeviceClock) -> None:
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """A step begins: nothing of it has been launched."""
        self._begun = self._clock.mark()
        self._launched: Mark | None = None
        self._host_begun = self._host_launched = time.perf_counter()

    def launched(self) -> None:
        """The step's work has been launched; without a queue, all until ``seconds`` counts."""
        if self._clock.queues:
            self._launched = self._clock.mark()
            self._host_launched = time.perf_counter()

    def seconds(self) -> float:
        """Seconds of the step, for which the host has waited."""
        end = self._launched or self._clock.mark()
        end.wait()
        return max(end.since(self._begun), self._host_launched - self._host_begun)
