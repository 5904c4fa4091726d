"""Run all stages of training; each resumes where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.phi3v.configuration import Phi3VConfig
from scripts.demo_training.export import config_for, export
from scripts.demo_training.language.seeing import seen_pictures
from scripts.demo_training.language.stage import SEEN, TOLD, train_language
from scripts.demo_training.language.tokenizer import write_demo_tokenizer
from scripts.demo_training.parallel import at_once, in_processes
from scripts.demo_training.progress import History, plot
from scripts.demo_training.states import averaged
from scripts.demo_training.tower.stage import TELLING, WHOLE, WINDOWS, train_tower, trained


def train(options: argparse.Namespace) -> None:
    """Train or resume training, then write the checkpoint and a plot of the losses."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer.json").exists():
        write_demo_tokenizer(work, options.seed)
    at_once((_see, _listen), options)
    in_processes(options.processes, _talk, options)
    export(options.out, work, trained(work), averaged(work / f"{SEEN.name}.pt"))
    stages = (WINDOWS.name, WHOLE.name, TELLING.name, TOLD.name, SEEN.name)
    plot({name: History(work / f"{name}.csv") for name in stages}, work / "losses.png")
    print(
        f"wrote the checkpoint to {options.out} and a plot of the losses to {work / 'losses.png'}"
    )


def _see(options: argparse.Namespace) -> None:
    train_tower(options.work, WINDOWS, options.window_steps, options.seed)
    train_tower(options.work, WHOLE, options.whole_steps, options.seed, after=WINDOWS)
    train_tower(options.work, TELLING, options.telling_steps, options.seed, after=WHOLE)


def _listen(options: argparse.Namespace) -> None:
    config = Phi3VConfig(**config_for(options.work))
    train_language(options.work, TOLD, config, None, options.told_steps, options.seed)


def _talk(options: argparse.Namespace) -> None:
    config = Phi3VConfig(**config_for(options.work))
    pictures = seen_pictures(trained(options.work), options.work, options.seed, options.pictures)
    told = averaged(options.work / f"{TOLD.name}.pt")
    train_language(options.work, SEEN, config, pictures, options.seen_steps, options.seed, told)
