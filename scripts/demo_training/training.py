"""All stages of training in turn, each of which goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.phi3v.configuration import Phi3VConfig
from scripts.demo_training.export import config_for, export
from scripts.demo_training.language import (
    SEEN,
    TOLD,
    averaged,
    learn_to_see,
    remember_features,
    train_language,
)
from scripts.demo_training.parallel import in_processes
from scripts.demo_training.progress import History, plot
from scripts.demo_training.tokenizer import write_demo_tokenizer
from scripts.demo_training.tower import (
    WHOLE,
    WINDOWS,
    average_weights,
    tower_alone,
    train_tower,
)


def train(options: argparse.Namespace) -> None:
    """Train from scratch, or go on, and write the checkpoint and a plot of the losses."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer.json").exists():
        write_demo_tokenizer(work, options.seed)
    for stage in (_windows, _whole, _told, _seen):
        in_processes(options.processes, stage, options)
    finish(work, options.out)


def finish(work: Path, out: Path) -> None:
    """Write what has been trained."""
    tower = tower_alone(average_weights(work, WHOLE)).state_dict()
    export(out, work, tower, averaged(work, SEEN))
    stages = (WINDOWS.name, WHOLE.name, TOLD.name, SEEN.name)
    plot({name: History(work / f"{name}.csv") for name in stages}, work / "losses.png")
    print(f"the checkpoint is in {out}, a plot of the losses in {work / 'losses.png'}")


def _windows(options: argparse.Namespace) -> None:
    train_tower(options.work, WINDOWS, options.window_steps, options.seed)


def _whole(options: argparse.Namespace) -> None:
    train_tower(options.work, WHOLE, options.whole_steps, options.seed, after=WINDOWS)


def _told(options: argparse.Namespace) -> None:
    config = Phi3VConfig(**config_for(options.work))
    train_language(options.work, TOLD, config, None, options.told_steps, options.seed)


def _seen(options: argparse.Namespace) -> None:
    config = Phi3VConfig(**config_for(options.work))
    tower = tower_alone(average_weights(options.work, WHOLE))
    features = remember_features(tower, options.work, options.seed, options.pictures)
    weights = None
    if not (options.work / f"{SEEN.name}.pt").exists():
        weights = learn_to_see(config, averaged(options.work, TOLD), features, options.seed)
    train_language(options.work, SEEN, config, features, options.seen_steps, options.seed, weights)
