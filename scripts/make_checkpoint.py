"""Write a random Phi-3-vision checkpoint in the official on-disk format."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.demo.random_checkpoint import PRESETS, write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True, help="model size")
    parser.add_argument("--out", type=Path, required=True, help="output directory")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    parser.add_argument(
        "--text-only",
        action="store_true",
        help="write only the decoder, as a phi3 checkpoint, for programs without vision",
    )
    args = parser.parse_args()
    preset, name = PRESETS[args.preset], f"phi3v-{args.preset}"
    write_checkpoint(args.out, preset, args.seed, name, text_only=args.text_only)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
