"""Logging as text or JSON, which never blocks or fails a request.

A separate thread writes to standard error. If the reader stalls, the disk is full or the stream is
closed, lines are lost. No line contains the content of requests or answers.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import queue
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any, Literal

logger = logging.getLogger(__name__)

LogFormat = Literal["text", "json"]

MOST_LINES_WAITING = 10_000
LONGEST_CHAIN = 10  # chained exceptions to log
SECONDS_TO_FINISH = 2.0
# Libraries whose debug logs would show the content of requests.
CHATTY = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "asyncio",
    "sse_starlette",
    "PIL",
    "numba",
    "filelock",
    "urllib3",
)
# RuntimeErrors logged here come from torch, which sees no text; other errors may quote grammars.
WITHOUT_CONTENT = "model."


def fields(**values: Any) -> dict[str, Any]:
    """Fields to log with a message, for ``extra``; None values are omitted."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


class TextFormatter(logging.Formatter):
    """Formats ``time LEVEL logger: message name=value ...``, followed by tracebacks."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Format the line without a traceback."""
        values = getattr(record, "fields", {})
        shown = [f" {name}={_word(value)}" for name, value in values.items()]
        return super().formatMessage(record) + "".join(shown)

    def format(self, record: logging.LogRecord) -> str:
        """Format the line and the traceback."""
        record.message, record.asctime = record.getMessage(), self.formatTime(record)
        line = self.formatMessage(record)
        stack = _stack(record)
        return f"{line}\n{stack}" if stack else line


class JsonFormatter(logging.Formatter):
    """Formats one JSON object per line: time, level, logger, message, fields and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the object."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if stack := _stack(record):
            entry["exception"] = stack
        return json.dumps(entry, default=str)


def _stack(record: logging.LogRecord) -> str:
    """Format the traceback; error messages, which may quote a request, only at level debug."""
    if record.exc_info is None or record.exc_info[1] is None:
        return ""
    if logging.getLogger().level <= logging.DEBUG:
        return logging.Formatter().formatException(record.exc_info)
    in_model = record.name.startswith(WITHOUT_CONTENT)
    error: BaseException | None = record.exc_info[1]
    stacks: list[str] = []
    while error is not None and len(stacks) < LONGEST_CHAIN:
        stack = "".join(traceback.format_tb(error.__traceback__))
        words = f": {error}" if in_model and isinstance(error, RuntimeError) else ""
        stacks.append(f"{stack}{type(error).__module__}.{type(error).__qualname__}{words}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\ncaused by\n".join(stacks)


def _word(value: Any) -> str:
    """Format a value as a single word, quoted if necessary."""
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    plain = text.isascii() and text.isprintable() and not set(text) & set(' "=')
    return text if plain and text else json.dumps(text)


class Writer(logging.Handler):
    """Writes lines to a file descriptor from a thread; drops lines that it cannot write."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_LINES_WAITING)
        self._output = UnfailingOutput(descriptor)
        self._thread = threading.Thread(target=self._write, name="logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line."""
        with contextlib.suppress(queue.Full):
            try:
                self._lines.put_nowait(self.format(record))
            except (TypeError, ValueError):  # arguments do not match the message
                self._lines.put_nowait(f"failed to format a message from {record.name}")

    def _write(self) -> None:
        for line in iter(self._lines.get, None):
            self._output.write(line.encode("utf-8", "replace") + b"\n")

    def finish(self) -> None:
        """Wait for the queued lines to be written, within a time limit."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=SECONDS_TO_FINISH)
            self._thread.join(SECONDS_TO_FINISH)


class UnfailingOutput(io.RawIOBase):
    """A file descriptor whose writes never fail; data that cannot be written is lost."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        """Write everything; on an error, drop the rest."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        return size


def open_standard_streams() -> None:
    """Make writes to standard output and error never fail; call this before opening sockets.

    Closed streams are opened on the null device. Otherwise a socket would get their descriptors, and a
    library's output would go to a client.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _unfailing(1)
    sys.stderr = _unfailing(2)


def _unfailing(descriptor: int) -> io.TextIOWrapper:
    buffered = io.BufferedWriter(UnfailingOutput(descriptor))
    return io.TextIOWrapper(buffered, "utf-8", "backslashreplace", line_buffering=True)


def say(style: LogFormat, sentence: str) -> None:
    """Tell the operator something: in a JSON log, otherwise on standard output."""
    if style == "json":
        logger.info(sentence)
    else:
        print(sentence, flush=True)


def complain(style: LogFormat, sentence: str) -> None:
    """Tell the operator about an error: in a JSON log, otherwise on standard error."""
    if style == "json":
        logger.error(sentence)
    else:
        print(f"phi3v-server: {sentence}", file=sys.stderr, flush=True)


def start(style: LogFormat, level: str) -> Writer:
    """Configure logging for the server and all libraries.

    Args:
        style: the log format.
        level: the minimum level.

    Returns:
        the handler; call its ``finish`` at exit.
    """
    if style == "json":
        os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars are not JSON
    logging.raiseExceptions = False
    handler = Writer(2)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    return handler
