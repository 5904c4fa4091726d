"""The subcommands ``download``, ``check`` and ``batch``.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field, FilePath
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model import OFFICIAL, CheckpointError, check_checkpoint, find_checkpoint
from server.settings import CommandSettings, ModelSettings, Revision
from server.telemetry import logs

Result = TypeVar("Result")


class _EndedError(Exception):
    """A signal interrupted the program."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


def _until_signal(work: Callable[[], Result]) -> Result:
    """Run ``work`` on a thread and return its result; raises what it raises, or _EndedError on a signal."""

    def on_signal(number: int, _: object) -> None:
        handle(signal.SIG_DFL)
        raise _EndedError(number)

    def handle(handler: Callable[[int, Any], None] | signal.Handlers) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)

    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # raised by done.result()
            done.set_exception(error)

    handle(on_signal)
    threading.Thread(target=run, daemon=True).start()
    try:
        return done.result()
    finally:
        handle(signal.SIG_DFL)


class Download(CommandSettings):
    """Download a checkpoint to the hub's cache, unless it is there already, and print its directory."""

    model_config = SettingsConfigDict(cli_prog_name="phi3v-server download")

    model: CliPositionalArg[str] = Field(
        OFFICIAL,
        min_length=1,
        description="model id on the Hugging Face Hub; Microsoft's by default",
    )
    revision: Revision = None

    def run(self) -> int:
        """Download; returns the exit status."""
        log = logs.start("text", "info")
        try:
            directory = _until_signal(partial(find_checkpoint, self.model, self.revision))
        except CheckpointError as error:
            logs.complain("text", str(error))
            return 1
        except _EndedError as ended:
            print(file=sys.stderr)  # end the line of the progress bar
            logs.complain("text", f"{ended}; complete files are kept for the next run")
            return 128 + ended.number
        finally:
            log.finish()
        print(directory)
        return 0


class Check(CommandSettings):
    """Check a checkpoint's files against the architecture, without loading its weights."""

    model_config = SettingsConfigDict(cli_prog_name="phi3v-server check")

    directory: CliPositionalArg[Path] = Field(description="checkpoint directory")

    def run(self) -> int:
        """Print the findings, problems last; returns the exit status, 1 if there are problems."""
        findings = check_checkpoint(self.directory.expanduser())
        width = max(len(finding.subject) for finding in findings)
        for finding in sorted(findings, key=lambda finding: not finding.ok):
            print(f"{'ok' if finding.ok else 'WRONG':6}{finding.subject:{width}}  {finding.text}")
        return 0 if all(finding.ok for finding in findings) else 1


class Batch(ModelSettings):
    """Run a file of requests in OpenAI's batch format, without HTTP.

    To resume, run it again: requests whose results are already in OUTPUT are skipped.
    """

    model_config = SettingsConfigDict(cli_prog_name="phi3v-server batch")
    throughput: ClassVar[bool] = True

    input: CliPositionalArg[FilePath] = Field(
        description="JSON Lines file; each line has custom_id, method, url and body"
    )
    output: CliPositionalArg[Path] = Field(
        description="file for the results, one JSON object per line"
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        description="maximum sequences computed per step; by default 64 on CPUs, and 16 to 256 on GPUs, "
        "one for each 512 tokens that fit",
    )
    request_timeout: float = Field(
        math.inf, gt=0, description="seconds a request may take, including time in the queue"
    )

    def run(self) -> int:
        """Process the requests; returns the exit status."""
        from server.batch.run import run

        return run(self, self.input, self.output)


COMMANDS: dict[str, type[Download] | type[Check] | type[Batch]] = {
    "download": Download,
    "check": Check,
    "batch": Batch,
}
