"""A server process as a user starts it."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
API_KEY = "a-key-for-tests"
READY = re.compile(r"is ready on (https?://[\w.:\[\]-]+)")
START_TIMEOUT = 240
HEAD = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
ENTRY = re.compile(rf'(?={HEAD}[A-Z]+ )|^(?=\{{"|Traceback)', re.MULTILINE)
FAULT = re.compile(
    rf"\A{HEAD}(ERROR|CRITICAL) "
    r'|\A\{.*"level": "(error|critical)"|\A\{.*"exception": '
    r'|^  File "|Traceback',  # stacks are logged without that word, unless in debug
    re.MULTILINE,
)


@dataclass
class LiveServer:
    """A server process and what it printed."""

    process: subprocess.Popen[str]
    url: str
    key: str = API_KEY
    log: list[str] = field(default_factory=list)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 200) -> int:
        """Send a signal and wait for the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)


def faults(log: str) -> list[str]:
    """What a log says of errors that nobody expected, each with its stack."""
    return [entry for entry in ENTRY.split(log) if FAULT.search(entry)]


def check_log(log: str, allowed: Collection[str] = ()) -> None:
    """That a log tells of no fault, but for those that have allowed words in them."""
    found = [each for each in faults(log) if not any(words in each for words in allowed)]
    assert not found, "".join(found)


def start_server(
    *flags: str,
    program: tuple[str, ...] = ("-m", "server"),
    python: str | Path = sys.executable,
    cwd: Path = ROOT,
    timeout: float = START_TIMEOUT,
    **environment: str,
) -> LiveServer:
    """Start ``python -m server``, or another program, on a free port and wait for its ready line."""
    process = subprocess.Popen(
        [python, *program, "--port", "0", *flags],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log: list[str] = []
    urls: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            log.append(line)
            if match := READY.search(line):
                urls.put(match[1])
        process.stdout.close()
        urls.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        url = urls.get(timeout=timeout)
    except queue.Empty:
        process.kill()
        url = None
    if url is None:
        process.wait()
        raise RuntimeError("the server did not start:\n" + "".join(log))
    return LiveServer(process, url, log=log)
