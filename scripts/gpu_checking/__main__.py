"""``scripts/gpu_check``: run the checks and print the report."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

import scripts.gpu_checking
from model.demo.random_checkpoint import PRESETS, write_checkpoint
from scripts.benchmarks.harness.report import Report
from scripts.gpu_checking import parity, paths, speed
from scripts.gpu_checking.device import describe, fast_dtype, why_no_gpu
from scripts.gpu_checking.paths import LONGEST_REASON

ENOUGH = 14e9  # bytes of free GPU memory to run a model of the official size


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check",
        description=scripts.gpu_checking.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--device", choices=["cuda", "cpu"], default="cuda", help="device to check")
    flag("--model", type=Path, help="checkpoint for the speed test; default: a random one")
    flag(
        "--preset",
        choices=sorted(PRESETS),
        help="size of the random checkpoint; default: full (8.3 GB, written to the temporary "
        "directory) if it fits on the GPU, else large (1.3 GB)",
    )
    args = parser.parse_args()
    if args.device == "cuda" and (reason := why_no_gpu()):
        print(f"gpu_check: {reason}; --device cpu runs the same checks on the CPU", file=sys.stderr)
        return 2
    logging.getLogger("transformers").setLevel(logging.ERROR)
    device = torch.device(args.device)
    dtype = fast_dtype(device)
    print(f"# GPU check\n\n{describe(device)}\n", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        tiny = Path(directory) / "tiny"
        write_checkpoint(tiny, PRESETS["tiny"], seed=1, name="phi3v-tiny", num_crops=4)

        def measure() -> Report:
            measured = args.model
            if measured is None:
                preset = args.preset or ("full" if _free_memory(device) > ENOUGH else "large")
                measured = Path(directory) / preset
                if preset != "tiny":
                    write_checkpoint(measured, PRESETS[preset], name=f"phi3v-{preset}")
            return speed.check(measured, device, dtype)

        good = [
            _done("parity", lambda: parity.check(tiny, device, dtype)),
            _done("paths", lambda: paths.check(tiny, device, dtype)),
            _done("speed", measure),
        ]
    return 0 if all(good) else 1


def _done(name: str, check: Callable[[], Report]) -> bool:
    """Run a part and print its report at once, because a later part may kill the process."""
    try:
        report = check()
    except Exception as error:  # any failure is a result to report
        traceback.print_exc()
        said = textwrap.shorten(str(error), LONGEST_REASON)
        print(f"## {name}: stopped by {type(error).__name__}: {said}\n", flush=True)
        return False
    print(report.markdown(), flush=True)
    return all(figure.met for figure in report.figures)


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


if __name__ == "__main__":
    sys.exit(main())
