"""Times on a device that works through a queue, beside the host's."""

from __future__ import annotations

import time
from typing import Self

import pytest
import torch

from model.engine.execution.device_clock import CudaClock, HostClock, StepTimer, clock_of
from tests.support.engines.queued_device import QueuedDevice


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> QueuedDevice:
    device = QueuedDevice()
    monkeypatch.setattr("model.engine.execution.device_clock.time.perf_counter", device.host_time)
    return device


def test_a_step_takes_as_long_as_the_device_computes(device: QueuedDevice) -> None:
    timer = StepTimer(device)
    timer.begin()
    device.launch(0.030, host=0.002)
    timer.launched()
    device.host += 0.5  # sampled tokens are handled, a grammar is late
    assert timer.seconds() == pytest.approx(0.030)


def test_a_step_is_not_blamed_for_what_was_queued_before(device: QueuedDevice) -> None:
    timer = StepTimer(device)
    device.launch(0.2, host=0.001)  # a part of the vision tower
    timer.begin()
    device.launch(0.030, host=0.002)
    timer.launched()
    assert timer.seconds() == pytest.approx(0.030)
    assert device.host == pytest.approx(0.23)  # it waited for both


def test_launching_counts_if_it_takes_longer_than_computing(device: QueuedDevice) -> None:
    """The device ran through these kernels at once, because it was busy while they were launched."""
    timer = StepTimer(device)
    device.launch(0.2, host=0.001)
    timer.begin()
    for _ in range(100):
        device.launch(0.00001, host=0.0001)
    timer.launched()
    assert timer.seconds() == pytest.approx(0.01)


def test_without_a_queue_all_of_the_step_counts() -> None:
    timer = StepTimer(HostClock())
    timer.begin()
    started = time.perf_counter()
    timer.launched()
    while time.perf_counter() < started + 0.002:
        pass
    assert timer.seconds() >= 0.002


class Event:
    """Stands in for ``torch.cuda.Event``; time passes when an event is recorded."""

    milliseconds = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.waited = False

    def record(self, stream: str) -> None:
        assert stream == "stream of cuda:1"
        Event.milliseconds += 250
        self.at = Event.milliseconds

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, later: Self) -> float:
        assert later.waited
        return later.at - self.at


def test_cuda_marks_are_events_on_the_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    clock = clock_of(torch.device("cuda:1"))
    assert isinstance(clock, CudaClock)
    first, second = clock.mark(), clock.mark()
    second.wait()
    assert second.since(first) == pytest.approx(0.25)
    assert isinstance(clock_of(torch.device("cpu")), HostClock)
