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

import psutil

from tests.support.waiting import eventually

ROOT = Path(__file__).parents[3]
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


def start_loading(checkpoint: Path, folder: Path) -> tuple[LiveServer, Path]:
    """A server that loads, and the pipe in which it waits for the checkpoint's ``tokenizer.json``."""
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    pipe = folder / "tokenizer.json"
    pipe.unlink()
    os.mkfifo(pipe)
    live, _ = _spawn([sys.executable, "-m", "server", "--port", "0", "--model", str(folder)])
    process = psutil.Process(live.process.pid)

    def port() -> int | None:
        assert live.process.poll() is None, "".join(live.log)
        made = process.net_connections("tcp")
        return next((each.laddr.port for each in made if each.status == psutil.CONN_LISTEN), None)

    try:
        listening = eventually(port, START_TIMEOUT, "the server listens")
    except BaseException:
        live.process.kill()
        live.process.wait()
        raise
    live.url = f"http://127.0.0.1:{listening}"
    return live, pipe


def start_server(
    *flags: str,
    program: tuple[str, ...] = ("-m", "server"),
    python: str | Path = sys.executable,
    cwd: Path = ROOT,
    timeout: float = START_TIMEOUT,
    **environment: str,
) -> LiveServer:
    """Start ``python -m server``, or another program, on a free port and wait for its ready line."""
    live, urls = _spawn([python, *program, "--port", "0", *flags], cwd, **environment)
    try:
        url = urls.get(timeout=timeout)
    except queue.Empty:
        live.process.kill()
        url = None
    if url is None:
        live.process.wait()
        raise RuntimeError("the server did not start:\n" + "".join(live.log))
    live.url = url
    return live


def _spawn(
    command: list[str | Path], cwd: Path = ROOT, **environment: str
) -> tuple[LiveServer, queue.SimpleQueue[str | None]]:
    """A process whose output is read, and what it says it is ready on; None when it has ended."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    live = LiveServer(process, url="")
    urls: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            live.log.append(line)
            if match := READY.search(line):
                urls.put(match[1])
        process.stdout.close()
        urls.put(None)

    threading.Thread(target=read, daemon=True).start()
    return live, urls
