"""Train the demo model, or measure it: see ``scripts/train_demo --help`` and ``scripts/eval_demo --help``."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.demo import CHECKPOINT

WORK = Path(__file__).parents[2] / ".demo_training"


def main() -> None:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="train from scratch, or go on where it stopped")
    train.add_argument(
        "--work", type=Path, default=WORK, help="what is needed to go on, and the plot"
    )
    train.add_argument("--out", type=Path, default=CHECKPOINT, help="the checkpoint")
    train.add_argument("--window-steps", type=int, default=5000, help="tower, on quarters of views")
    train.add_argument("--whole-steps", type=int, default=3000, help="tower, on whole views")
    train.add_argument("--telling-steps", type=int, default=4500, help="tower, to say it in codes")
    train.add_argument("--told-steps", type=int, default=11000, help="language, without a tower")
    train.add_argument("--seen-steps", type=int, default=2000, help="language, on what is seen")
    train.add_argument("--pictures", type=int, default=12000, help="for the last stage")
    train.add_argument("--processes", type=int, default=2, help="of one thread each, in that stage")
    train.set_defaults(run=_train)
    measure = commands.add_parser("evaluate", help="ask a server about held-out pictures")
    measure.add_argument("--url", help="of a running server; without it, one is started")
    measure.add_argument("--key", default="any", help="the server's API key")
    measure.add_argument("--model", default="demo", help="what the started server serves")
    measure.add_argument("--dtype", default="auto", help="of the started server")
    measure.add_argument("--questions", type=int, default=1200)
    measure.add_argument("--failures", type=Path, help="folder for the pictures answered wrongly")
    measure.set_defaults(run=_evaluate)
    options = parser.parse_args()
    run = vars(options).pop("run")  # a function of this module cannot go to other processes
    run(options)


def _train(options: argparse.Namespace) -> None:
    from scripts.demo_training.training import train

    train(options)


def _evaluate(options: argparse.Namespace) -> None:
    from scripts.demo_training.evaluation.evaluate import evaluate

    evaluate(options)


if __name__ == "__main__":
    main()
