"""``scripts/gpu_check``: run the parts one after the other, each in its own process."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import scripts.gpu_checking
from scripts.gpu_checking.device import describe, why_no_gpu
from scripts.gpu_checking.options import add_flags
from scripts.gpu_checking.parts import NAMES

ROOT = Path(__file__).parents[2]
SECONDS = 590


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check",
        description=scripts.gpu_checking.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser)
    flag = parser.add_argument
    flag("--parts", nargs="+", choices=NAMES, default=list(NAMES), help="default: all")
    flag("--seconds", type=float, default=SECONDS, help=f"time for all parts; default: {SECONDS}")
    flag("--json", type=Path, help="file to write the data of all reports to")
    args = parser.parse_args()
    if args.device == "cuda" and (reason := why_no_gpu()):
        print(f"gpu_check: {reason}; --device cpu runs the same checks on the CPU", file=sys.stderr)
        return 2
    machine = describe(torch.device(args.device))
    facts = "\n".join(f"- {name}: {fact}" for name, fact in machine.items())
    print(f"# GPU check\n\n{facts}\n", flush=True)
    deadline = time.monotonic() + args.seconds
    results: list[dict[str, Any]] = []
    good = True
    with tempfile.TemporaryDirectory() as directory:
        # An empty cache, so that the time of the kernels' first compilation is measured.
        environment = {**os.environ, "TRITON_CACHE_DIR": f"{directory}/triton", "TQDM_DISABLE": "1"}
        for name in args.parts:
            file = Path(directory) / f"{name}.json"
            program = [sys.executable, "-m", "scripts.gpu_checking.run_part", name]
            command = [*program, *_flags(args), "--json", str(file)]
            good = _run(name, command, environment, deadline - time.monotonic()) and good
            found = json.loads(file.read_text("utf-8")) if file.exists() else {"name": name}
            results.append(found)
            if args.json is not None:  # at once, because a later part may end the machine
                content = {"machine": machine, "parts": results}
                args.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0 if good else 1


def _flags(args: argparse.Namespace) -> list[str]:
    """The flags of a part."""
    given = {"device": args.device, "preset": args.preset}
    for name in ("model", "picture"):
        if (path := getattr(args, name)) is not None:
            given[name] = str(path.absolute())
    return [part for name, value in given.items() if value for part in (f"--{name}", value)]


def _run(name: str, command: list[str], environment: dict[str, str], seconds: float) -> bool:
    """Run a part, which prints its report; returns whether all is well."""
    if seconds < 1:
        print(f"## {name}: not checked: the time is over (--seconds)\n", flush=True)
        return False
    # A session of its own, so that the programs that it starts end with it.
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"## {name}: stopped after {seconds:.0f} s, because the time is over\n", flush=True)
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status not in (0, 1):
        print(f"## {name}: ended with status {status}\n", flush=True)
    return status == 0


if __name__ == "__main__":
    sys.exit(main())
