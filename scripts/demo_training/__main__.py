"""Train or evaluate the demo model; see ``scripts/train_demo --help`` and ``scripts/eval_demo --help``."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.demo import CHECKPOINT

WORK = Path(__file__).parents[2] / ".demo_training"


def main() -> None:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="train from scratch, or resume training")
    train.add_argument(
        "--work", type=Path, default=WORK, help="directory for the training state and the plot"
    )
    train.add_argument("--out", type=Path, default=CHECKPOINT, help="directory of the checkpoint")
    train.add_argument(
        "--window-steps", type=int, default=5000, help="steps of the tower on quarter views"
    )
    train.add_argument(
        "--whole-steps", type=int, default=3000, help="steps of the tower on whole views"
    )
    train.add_argument(
        "--telling-steps", type=int, default=4500, help="steps of the tower and projection on codes"
    )
    train.add_argument(
        "--told-steps", type=int, default=11000, help="steps of the decoder without the tower"
    )
    train.add_argument(
        "--seen-steps", type=int, default=2000, help="steps of the decoder on the tower's output"
    )
    train.add_argument("--pictures", type=int, default=12000, help="pictures of the last stage")
    train.add_argument(
        "--processes", type=int, default=2, help="single-threaded processes of the last stage"
    )
    train.set_defaults(run=_train)
    measure = commands.add_parser("evaluate", help="ask a server about held-out pictures")
    measure.add_argument("--url", help="URL of a running server; default: start one")
    measure.add_argument("--key", default="any", help="the server's API key")
    measure.add_argument("--model", default="demo", help="model of the started server")
    measure.add_argument("--dtype", default="auto", help="dtype of the started server")
    measure.add_argument("--questions", type=int, default=1200, help="number of questions")
    measure.add_argument("--failures", type=Path, help="folder for pictures with wrong answers")
    measure.set_defaults(run=_evaluate)
    options = parser.parse_args()
    run = vars(options).pop("run")  # a function of __main__ cannot be pickled
    run(options)


def _train(options: argparse.Namespace) -> None:
    from scripts.demo_training.training import train

    train(options)


def _evaluate(options: argparse.Namespace) -> None:
    from scripts.demo_training.evaluation.evaluate import evaluate

    evaluate(options)


if __name__ == "__main__":
    main()
