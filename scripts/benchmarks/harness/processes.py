"""Server processes; all but the measured one are paused (SIGSTOP)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[3]
NAME = "default"  # of the model, on every server
START_SECONDS = 600


@dataclass
class Process:
    """A running process and its children, in one process group.

    Attributes:
        popen: the process.
        port: where it listens, or 0.
        idle_cpu: CPU cores that it used while idle.
        seconds_to_listen: from its start to the first response.
        seconds_to_ready: from its start until it accepted requests.
    """

    popen: subprocess.Popen[str]
    port: int = 0
    idle_cpu: float = 0.0
    seconds_to_listen: float = 0.0
    seconds_to_ready: float = 0.0

    @property
    def url(self) -> str:
        """Base URL of its OpenAI API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Resume it for the duration of the context."""
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def watch_idle(self, seconds: float = 3) -> None:
        """Measure ``idle_cpu``."""
        before = self.cpu_seconds()
        time.sleep(seconds)
        self.idle_cpu = (self.cpu_seconds() - before) / seconds

    def cpu_seconds(self) -> float:
        """Processor time of the process and its children so far."""
        parent = psutil.Process(self.popen.pid)
        times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
        return sum(spent.user + spent.system for spent in times)

    def stop(self) -> None:
        """End the group."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(30)
        self.signal(signal.SIGKILL)
        self.popen.wait()


def start(command: list[str], log: Path, environment: Mapping[str, str], **pipes: Any) -> Process:
    """Start a process in its own group; its output goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(environment),
            start_new_session=True,
            text=True,
            **{"stdout": file, "stderr": file, **pipes},
        )
    return Process(popen)


def start_server(
    command: Callable[[int], list[str]], log: Path, environment: Mapping[str, str]
) -> Process:
    """Start ``command(port)`` on a free port, wait until it is ready, and pause it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start(command(port), log, environment)
    process.port = port
    started = time.monotonic()
    while (status := _status(f"http://127.0.0.1:{port}/health")) != 200:
        seconds = time.monotonic() - started
        if process.popen.poll() is not None or seconds > START_SECONDS:
            process.stop()
            raise RuntimeError(f"the server failed to start; see {log}")
        if status is not None:
            process.seconds_to_listen = process.seconds_to_listen or seconds
        time.sleep(0.1)
    process.seconds_to_ready = time.monotonic() - started
    time.sleep(1)
    process.watch_idle()
    process.signal(signal.SIGSTOP)
    return process


def _status(url: str) -> int | None:
    """The response's status; None if there is no response."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def ours(checkpoint: Path, dtype: str, flags: list[str], log: Path) -> Process:
    """This project's server."""

    def command(port: int) -> list[str]:
        sizes = ["--model", str(checkpoint), "--dtype", dtype, "--max-model-len", "4096"]
        name = ["--served-model-name", NAME]
        return [sys.executable, "-m", "server", "--port", str(port), *sizes, *name, *flags]

    return start_server(command, log, os.environ)


def vllm(
    python: Path, checkpoint: Path, dtype: str, preload: list[Path] | None, log: Path
) -> Process:
    """vLLM on the CPU, with the fastest known settings.

    The context window is 4096: with a longer one vLLM uses LongRoPE's long factors for all prompts.
    """
    home = python.absolute().parents[1]
    if preload is None:
        preload = [
            *home.glob("lib/libiomp5.so"),
            *home.glob("lib/**/libtcmalloc_minimal.so.4"),
            *home.parent.glob("tc/usr/lib/*/libtcmalloc_minimal.so.4"),
        ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "LD_PRELOAD": ":".join(map(str, preload)),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }

    def command(port: int) -> list[str]:
        address = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
        sizes = ["--dtype", dtype, "--max-model-len", "4096", "--max-num-seqs", "32"]
        program = [str(home / "bin" / "vllm"), "serve", str(checkpoint)]
        return [*program, *address, *sizes, "--no-enable-prefix-caching"]

    return start_server(command, log, environment)


class Worker:
    """The engine without HTTP, in a separate process; see ``engine_worker``."""

    def __init__(self, checkpoint: Path, dtype: str, log: Path) -> None:
        module = "scripts.benchmarks.harness.engine_worker"
        with log.open("w") as errors:
            self.process = start(
                [sys.executable, "-m", module, str(checkpoint), dtype],
                log,
                os.environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        if self._read() != "ready":
            self.process.stop()
            raise RuntimeError(f"the engine failed to start; see {log}")
        self.process.signal(signal.SIGSTOP)

    def ask(self, **job: int) -> Any:
        """Run a job while all other processes are paused."""
        assert self.process.popen.stdin is not None
        with self.process.awake():
            self.process.popen.stdin.write(json.dumps(job) + "\n")
            self.process.popen.stdin.flush()
            return self._read()

    def _read(self) -> Any:
        assert self.process.popen.stdout is not None
        line = self.process.popen.stdout.readline()
        if not line:
            raise RuntimeError("the engine process has died")
        return json.loads(line)


def ask_server(process: Process, **job: int) -> Any:
    """Run a job against a server from a client process while all others are paused."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in job.items()]
    command = [
        sys.executable,
        "-m",
        "scripts.benchmarks.harness.load",
        "--url",
        process.url,
        *flags,
    ]
    with process.awake():
        done = subprocess.run(
            [*command, "--model", NAME], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
    return json.loads(done.stdout)
