"""Run one part of the check and print its report: ``python -m scripts.gpu_checking.run_part NAME``."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
import textwrap
import time
import traceback
from pathlib import Path
from typing import Any

from scripts.gpu_checking.options import Options, add_flags
from scripts.gpu_checking.parts import NAMES, NotCheckedError

LONGEST_REASON = 160  # characters; torch's errors may list all backends


def main() -> int:
    """Returns the exit status: 1 if a result is wrong or the part failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, help="file to write the report's data to")
    add_flags(parser)
    args = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    good, data = run(args.name, Options.of(args))
    if args.json is not None:
        args.json.write_text(json.dumps(data, indent=1, default=str), "utf-8")
    return 0 if good else 1


def run(name: str, options: Options) -> tuple[bool, dict[str, Any]]:
    """Print a part's report; returns whether all is well, and the report's data."""
    started = time.perf_counter()
    try:
        module = importlib.import_module(f"scripts.gpu_checking.parts.{name}")
        report = module.check(options)
    except NotCheckedError as reason:
        print(f"## {name}: not checked: {reason}\n", flush=True)
        return not options.on_gpu, {"name": name, "not_checked": str(reason)}
    except Exception as error:  # any failure is a result to report
        traceback.print_exc()
        said = textwrap.shorten(f"{type(error).__name__}: {error}", LONGEST_REASON)
        print(f"## {name}: stopped by {said}\n", flush=True)
        return False, {"name": name, "stopped_by": said}
    seconds = time.perf_counter() - started
    report.notes.append(f"this part took {seconds:.0f} s")
    print(report.markdown(), flush=True)
    data = {
        "name": name,
        "title": report.title,
        "seconds": seconds,
        "columns": report.columns,
        "rows": report.rows,
        "figures": [{**vars(figure), "met": figure.met} for figure in report.figures],
        "notes": report.notes,
        "data": report.data,
    }
    return all(figure.met for figure in report.figures), data


if __name__ == "__main__":
    sys.exit(main())
