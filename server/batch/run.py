"""One run of a batch: files, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import model
from server import logs
from server.batch.answers import Answers, BatchEndedError
from server.batch.lines import read_lines
from server.batch.progress import Progress
from server.batch.results import Results, ResultsError
from server.service import Backend
from server.settings import ModelSettings

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(settings: ModelSettings, source: Path, target: Path) -> int:
    """Answer the requests in ``source``; returns the exit status.

    It is 0 when each line has its result, which may be an error, and 128 and a signal's number when
    that left lines out.
    """
    log = logs.start(settings.log_format, settings.log_level)
    try:
        if target.exists() and target.samefile(source):
            raise ResultsError(f"{target} is the input; name another file for the output")
        with source.open("rb") as file, contextlib.closing(Results(target)) as results:
            return asyncio.run(_run(settings, file, results))
    except (ResultsError, BatchEndedError, model.ModelError) as error:
        print(f"phi3v-server: {error}", file=sys.stderr)
    except OSError as error:
        name = error.filename or target
        print(f"phi3v-server: {name} cannot be used: {error.strerror}", file=sys.stderr)
    finally:
        log.finish()
    return 1


async def _run(settings: ModelSettings, source: BinaryIO, results: Results) -> int:
    backend = Backend(settings)
    signals: list[int] = []
    answers: Answers | None = None

    def on_signal(number: int) -> None:
        """First signal: finish what runs. Second, or while loading: drop it."""
        if signals or answers is None:
            working.cancel()
        else:
            answers.stop()
            loop.call_later(settings.drain_timeout, working.cancel)
        signals.append(number)

    async def work() -> None:
        nonlocal answers
        await backend.load()
        progress = Progress(os.fstat(source.fileno()).st_size)
        answers = Answers(backend, results, progress)
        try:
            await answers.write(read_lines(source, settings.max_body_bytes))
        finally:
            print(progress.close(), flush=True)

    loop = asyncio.get_running_loop()
    working = asyncio.create_task(work())
    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await working
    finally:
        backend.close()
    if answers is not None and answers.complete:
        return 0
    name = signal.Signals(signals[0]).name
    print(f"phi3v-server: ended by {name}; run it again for what is left", file=sys.stderr)
    return 128 + signals[0]
