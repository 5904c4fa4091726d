"""Runs a batch: files, signals and graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import BinaryIO

import model
from server.batch.lines import read_lines
from server.batch.processor import BatchEndedError, BatchProcessor
from server.batch.progress import Progress
from server.batch.results import Results, ResultsError
from server.service import Backend
from server.settings import ModelSettings
from server.telemetry import logs

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(settings: ModelSettings, source: Path, target: Path) -> int:
    """Process the requests in ``source``; returns the exit status.

    0: every line has a result, which may be an error. 1: some lines are left for the next run, or the
    batch failed. 128 plus the signal's number: a signal interrupted the batch.
    """
    log = logs.start(settings.log_format, settings.log_level)
    try:
        if target.exists() and target.samefile(source):
            raise ResultsError(f"{target} is the input; choose another output file")
        with source.open("rb") as file, contextlib.closing(Results(target)) as results:
            return asyncio.run(_run(settings, file, results))
    except (ResultsError, BatchEndedError, model.ModelError) as error:
        logs.complain(settings.log_format, str(error))
    except OSError as error:
        name = error.filename or target
        logs.complain(settings.log_format, f"{name}: {error.strerror}")
    finally:
        log.finish()
    return 1


async def _run(settings: ModelSettings, source: BinaryIO, results: Results) -> int:
    backend = Backend(settings)
    signals: list[int] = []
    processor: BatchProcessor | None = None
    left = 0

    def on_signal(number: int) -> None:
        """First signal: finish requests in flight. Second, or while loading: abort."""
        if signals or processor is None:
            working.cancel()
        else:
            processor.stop()
            loop.call_later(settings.drain_timeout, working.cancel)
        signals.append(number)

    async def work() -> None:
        nonlocal processor, left
        await backend.load()
        quiet = settings.log_format == "json"
        progress = Progress(os.fstat(source.fileno()).st_size, quiet)
        processor = BatchProcessor(backend, results, progress)
        try:
            await processor.process(read_lines(source, settings.max_body_bytes))
        finally:
            logs.say(settings.log_format, progress.close())
            left = progress.left

    loop = asyncio.get_running_loop()
    working = asyncio.create_task(work())
    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await working
    finally:
        backend.close()
    if processor is not None and processor.complete:
        if left:
            lines, them = ("line", "it") if left == 1 else ("lines", "them")
            reason = (
                f"{left} {lines} got no result (see the log); run the batch again to retry {them}"
            )
            logs.complain(settings.log_format, reason)
        return 1 if left else 0
    name = signal.Signals(signals[0]).name
    logs.complain(
        settings.log_format, f"interrupted by {name}; run the batch again for the remaining lines"
    )
    return 128 + signals[0]
