"""Ray with few processes, on a free port, that serves the application; SIGUSR1 deploys it anew."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import tempfile

import ray
from ray import serve
from ray.serve.scripts import cli

NEXT_NAME = "phi3v-next"  # of the model, when it is deployed anew
SIGNALS = {signal.SIGUSR1, signal.SIGTERM, signal.SIGINT}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()


def serve_run(*arguments: str) -> None:
    """The command ``serve run``, in this cluster."""
    given = ["run", "--non-blocking", "server.ray_serve:app", *arguments]
    cli.main(given, standalone_mode=False)


def main() -> None:
    folder = tempfile.mkdtemp(prefix="ray")
    ray.init(
        num_cpus=2,
        object_store_memory=100_000_000,
        include_dashboard=False,
        _temp_dir=folder,
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve_run()
    say(f"it is ready on http://127.0.0.1:{port}")
    while signal.sigwait(SIGNALS) == signal.SIGUSR1:
        serve_run(f"served_model_name={NEXT_NAME}")
        say("deployed anew")
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
