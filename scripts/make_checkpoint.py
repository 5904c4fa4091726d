"""Write a random Phi-3-vision checkpoint in the official on-disk format."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.demo.random_checkpoint import PRESETS, write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True, help="sizes")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    args = parser.parse_args()
    write_checkpoint(args.out, PRESETS[args.preset], args.seed, f"phi3v-{args.preset}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
