"""``scripts/gpu_kernels``: compile and print the table."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict

from tqdm import tqdm

import scripts.gpu_compiling
from scripts.gpu_compiling.compiling import Row, compile_form, dtype_for, forms
from scripts.gpu_compiling.cubin import LIMITS


def main() -> int:
    """Returns the exit status: 1 if a form does not compile."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_kernels",
        description=scripts.gpu_compiling.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag(
        "--architectures",
        type=int,
        nargs="+",
        choices=sorted(LIMITS),
        default=sorted(LIMITS),
        help="compute capabilities, 80 for 8.0; default: all",
    )
    flag("--kernels", default="", help="compile only forms whose names contain this text")
    flag("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    rows = compile_all(args.architectures, args.kernels)
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(table(rows))
    return int(any(row.error for row in rows))


def compile_all(architectures: list[int], kernels: str) -> list[Row]:
    """Compile in two processes, with a progress bar; rows in the order of forms and architectures."""
    tasks = [
        (name, architecture)
        for name, _ in forms(dtype_for(80))
        for architecture in architectures
        if kernels in name
    ]
    rows: dict[tuple[str, int], Row] = {}
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(max_workers=2, mp_context=spawn) as pool,
        tqdm(total=len(tasks), desc="compiling", unit="kernel", file=sys.stderr) as progress,
    ):
        running = {pool.submit(compile_form, *task): task for task in tasks}
        for done in as_completed(running):
            rows[running[done]] = done.result()
            progress.update()
    return [rows[task] for task in tasks]


def table(rows: list[Row]) -> str:
    """Markdown, a line per form and architecture."""
    lines = [
        "| kernel | GPU | dtype | threads | registers | spilled bytes | shared KiB "
        "| blocks/multiprocessor | loads of 16 bytes (others) | compiled in s |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        start = f"| {row.kernel} | sm_{row.architecture} | {row.dtype} |"
        if (u := row.usage) is None:
            lines.append(f"{start} does not compile: {row.error} |")
            continue
        lines.append(
            f"{start} {u.threads} | {u.registers} | {u.spilled} | {u.shared / 1024:.1f} "
            f"| {u.blocks} | {u.wide_loads} ({u.narrow_loads}) | {row.seconds} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
