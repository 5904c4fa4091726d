"""How the demo model is trained: the code between its halves, the tower that becomes CLIP's, the stages."""

from __future__ import annotations

import csv
import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.demo.random_checkpoint import CLIP_MEAN, CLIP_STD
from model.engine.config import LoadOptions
from model.engine.loading.load import load_engine
from model.phi3v.vision import merge_patches
from scripts.demo_training.data.scenes import Scene, Thing, random_scene
from scripts.demo_training.language.naming import Names
from scripts.demo_training.optimizers import Optimizers
from scripts.demo_training.states import State, averaged
from scripts.demo_training.tower.codes import CODE, PARTS, codes, heard, spoken
from scripts.demo_training.tower.shifts import ShiftTower, clip_tower
from scripts.demo_training.tower.stage import MERGED, TowerTrainee, set_reading
from scripts.demo_training.training import train


def test_shifts_are_attention() -> None:
    """The tower as it is trained, and the CLIP tower in the checkpoint, compute the same."""
    torch.manual_seed(0)
    tower = ShiftTower().requires_grad_(False)
    for parameter in tower.parameters():  # norms and biases are all alike before training
        parameter.add_(0.05 * torch.randn_like(parameter))
    views = torch.randint(0, 256, (2, 336, 336, 3), dtype=torch.uint8)
    views[1, :200] = 255  # of flat patches the content is small
    pixels = ((views / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(0, 3, 1, 2)
    hidden = clip_tower(tower)(pixels, output_hidden_states=True).hidden_states[-2]
    expected, _ = tower(views)
    merged = merge_patches(hidden[:, 1:]).flatten(1, 2)
    assert expected.std() > 1
    torch.testing.assert_close(merged, expected, atol=1e-3, rtol=1e-4)


def test_windows_see_what_whole_views_see() -> None:
    """Away from its edges, a window is a part of the view, whatever its corner."""
    tower = ShiftTower().requires_grad_(False)
    tower.layers = tower.layers[:2]  # these look 3 patches far
    views = torch.randint(0, 256, (1, 336, 336, 3), dtype=torch.uint8)
    whole = tower(views)[0].unflatten(1, (12, 12))[:, 3 + 2 : 9 - 2, 5 + 2 : 11 - 2]
    window = views[:, 3 * 28 : 9 * 28, 5 * 28 : 11 * 28]
    seen = tower(window, torch.tensor([[6, 10]]))[0].unflatten(1, (6, 6))[:, 2:-2, 2:-2]
    torch.testing.assert_close(seen, whole)


def test_codes_tell_of_each_thing_once() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = random_scene(rng)
        told = codes(scene)
        shares = told[:, 0] / PARTS["share"][1]
        assert shares.sum().item() == pytest.approx(len(scene.things))
        assert (shares > 0).sum() <= 4 * len(scene.things)
        torch.testing.assert_close(heard(spoken(told)), told, atol=1e-4, rtol=1e-4)


def test_a_projection_can_be_linear() -> None:
    torch.manual_seed(0)
    reading = torch.randn(MERGED + 1, CODE) / MERGED**0.5
    projection = TowerTrainee(0).projection.requires_grad_(False)
    set_reading(projection, reading)
    features = torch.randn(7, MERGED)
    told = features @ reading[:-1] + reading[-1]
    torch.testing.assert_close(projection(features), spoken(told), atol=1e-4, rtol=1e-4)


def test_what_words_name() -> None:
    things = (
        Thing("circle", "red", (255, 0, 0), 0.2, 0.2, 0.2),
        Thing("circle", "blue", (0, 0, 255), 0.8, 0.2, 0.2),
        Thing("star", "red", (255, 0, 0), 0.5, 0.8, 0.2),
    )
    text = "where is the star , the blue circle , the circle , a red cross , the BLUE one ?"
    words = text.split(" ")
    ids = {word: number for number, word in enumerate(words)}
    names = Names(_Words(ids))  # type: ignore[arg-type]
    named = names.named([ids[word] for word in words], Scene(100, 100, things))
    assert {words[at]: thing for at, thing in enumerate(named) if thing >= 0} == {
        "star": 2, "blue": 1, "circle": 1, "BLUE": 1,
    }  # fmt: skip


def test_a_stage_goes_on_from_its_file(tmp_path: Path) -> None:
    """Weights, average and optimizers; a file that would run code is refused."""
    path = tmp_path / "stage.pt"

    def begun() -> tuple[State, nn.Module]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        return State(path, network, Optimizers([network], 10, 1e-2, slow=("1.",))), network

    def step(state: State, network: nn.Module) -> None:
        network(torch.ones(2, 4)).square().sum().backward()
        state.advance()

    state, network = begun()
    step(state, network)
    state.save()
    step(state, network)
    other, again = begun()
    step(other, again)
    assert other.step == 2
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert averaged(path).keys() == network.state_dict().keys()
    torch.save({"average": Names}, path)
    with pytest.raises(pickle.UnpicklingError):
        averaged(path)


class _Words:
    """A tokenizer of whole words."""

    def __init__(self, ids: dict[str, int]) -> None:
        self._ids = ids

    def encode_inner(self, text: str) -> list[int]:
        return [self._ids[text]] if text in self._ids else [0, 0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_stages(tmp_path: Path) -> None:
    """A few steps of each, in two runs of which the second goes on, end in a checkpoint that loads."""
    work, out = tmp_path / "work", tmp_path / "checkpoint"
    options = Namespace(
        seed=0, work=work, out=out, window_steps=1, whole_steps=1, telling_steps=1, told_steps=1,
        seen_steps=1, pictures=8, processes=2,
    )  # fmt: skip
    train(options)
    for name in ("window_steps", "whole_steps", "telling_steps", "told_steps", "seen_steps"):
        setattr(options, name, 2)
    train(options)
    for stage in ("windows", "whole", "telling", "told", "seen"):
        with (work / f"{stage}.csv").open() as file:
            assert [float(row["step"]) for row in csv.DictReader(file)] == [0, 1]
    assert (work / "losses.png").stat().st_size > 10_000
    load_engine(out, LoadOptions(model="", max_model_len=2048))
