"""The subcommands ``download``, ``check``, ``merge``, ``convert``, ``plan`` and ``batch``.

Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, FilePath
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model import (
    OFFICIAL,
    CheckpointError,
    LoadOptions,
    abandon_exports,
    check_checkpoint,
    convert,
    find_adapter,
    find_checkpoint,
    merge_adapter,
    size,
)
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
    lora: Path | None = Field(None, description="directory of an adapter to check with it")

    def run(self) -> int:
        """Print the findings, problems last; returns the exit status, 1 if there are problems."""
        lora = None if self.lora is None else self.lora.expanduser()
        findings = check_checkpoint(self.directory.expanduser(), lora)
        width = max(len(finding.subject) for finding in findings)
        for finding in sorted(findings, key=lambda finding: not finding.ok):
            label = "WRONG" if not finding.ok else "odd" if finding.odd else "ok"
            print(f"{label:6}{finding.subject:{width}}  {finding.text}")
        problems = sum(not finding.ok for finding in findings)
        if problems:
            s = "" if problems == 1 else "s"
            logs.complain("text", f"it will not be served, because of {problems} problem{s}")
        return 1 if problems else 0


def _written(work: Callable[[], str], out: Path) -> int:
    """Run ``work``, which writes ``out``, and print its result; returns the exit status."""
    log = logs.start("text", "info")
    try:
        result = _until_signal(work)
    except CheckpointError as error:
        logs.complain("text", str(error))
        return 1
    except _EndedError as ended:
        abandon_exports()
        print(file=sys.stderr)  # end the line of the progress bar
        logs.complain("text", f"{ended}; {out} was not written")
        return 128 + ended.number
    finally:
        log.finish()
    print(result)
    return 0


class Merge(CommandSettings):
    """Merge an adapter into a checkpoint and write the result in the official format."""

    model_config = SettingsConfigDict(cli_prog_name="phi3v-server merge")

    model: CliPositionalArg[str] = Field(
        min_length=1, description="checkpoint: a directory or a hub id"
    )
    lora: str = Field(min_length=1, description="adapter: a directory or a hub id")
    out: Path = Field(description="directory to write, which must not exist")
    revision: Revision = None
    lora_revision: str | None = Field(
        None, min_length=1, description="branch, tag or commit of the adapter on the hub"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="data type of the new weights; auto keeps the checkpoint's"
    )

    def run(self) -> int:
        """Merge; returns the exit status."""

        def work() -> str:
            directory = find_checkpoint(self.model, self.revision)
            lora = find_adapter(self.lora, self.lora_revision)
            merged = merge_adapter(directory, lora, self.lora, self.out.expanduser(), self.dtype)
            return f"{self.out}: merged {merged}"

        return _written(work, self.out)


class Convert(CommandSettings):
    """Write a checkpoint or an adapter, as trainers saved it, in the official names and format.

    Reads files of torch.save (.bin) too, of which only tensors are read.
    """

    model_config = SettingsConfigDict(cli_prog_name="phi3v-server convert")

    directory: CliPositionalArg[Path] = Field(description="directory of the checkpoint or adapter")
    out: Path = Field(description="directory to write, which must not exist")

    def run(self) -> int:
        """Convert; returns the exit status."""

        def work() -> str:
            convert(self.directory.expanduser(), self.out.expanduser())
            return str(self.out)

        return _written(work, self.out)


class Plan(ModelSettings):
    """Print what fits into the memory of a GPU, which need not be there."""

    model_config = SettingsConfigDict(cli_prog_name="phi3v-server plan")

    model: str = Field(
        OFFICIAL,
        min_length=1,
        description="checkpoint: a directory, a hub id or 'demo'; Microsoft's by default, which need "
        "not be downloaded",
    )
    memory: float = Field(
        gt=0,
        le=1e6,
        description="GiB that are free on the GPU, or on the machine with --device cpu",
    )
    tokens: int = Field(
        3000, ge=1, description="length of a sequence, to count how many fit at once"
    )

    def run(self) -> int:
        """Print the plan; returns the exit status, 1 if the model does not fit."""
        try:
            options = {field.name: getattr(self, field.name) for field in fields(LoadOptions)}
            found = _until_signal(lambda: size(LoadOptions(**options), self.memory))
        except (CheckpointError, _EndedError) as error:
            logs.complain("text", str(error))
            return 1
        for line in found.lines(self.tokens):
            print(line)
        return 0


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


COMMANDS: dict[
    str,
    type[Download] | type[Check] | type[Merge] | type[Convert] | type[Plan] | type[Batch],
] = {
    "download": Download,
    "check": Check,
    "merge": Merge,
    "convert": Convert,
    "plan": Plan,
    "batch": Batch,
}
