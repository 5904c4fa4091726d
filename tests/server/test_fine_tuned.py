"""Fine-tuned models on the command line: ``--lora``, ``merge``, ``convert``, ``check`` and ``plan``."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load_file

from model import CheckpointError, LoadOptions, check_checkpoint, find_adapter, size
from tests.support.engines.adapters import (
    WEIGHTS,
    change_json,
    change_tensors,
    make_adapter,
    merged_by_peft,
    rename_keys,
)
from tests.support.peers.hub import Repo, serve_hub
from tests.support.servers.command_line import one_sentence, run
from tests.support.servers.live_server import API_KEY, ROOT, LiveServer, check_log, start_server
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny, tmp_path_factory.mktemp("adapters") / "receipts")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_server_with_an_adapter(tiny: Path, adapter: Path) -> None:
    live = start_server("--model", str(tiny), "--lora", str(adapter), "--api-key", API_KEY)
    try:
        assert get(live, "/info") == {
            "model_name": "phi3v-tiny",
            "model_type": "chat-completions",
            "model_provider_name": "phi3v-server",
            "adapter": "receipts",
        }
        (card,) = get(live, "/v1/models")["data"]
        assert (card["id"], card["adapter"]) == ("phi3v-tiny", "receipts")
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        url = f"{live.url}/v1/chat/completions"
        assert httpx2.post(url, json=body, headers={"api-key": API_KEY}).status_code == 200
    finally:
        assert live.stop() == 0
    log = "".join(live.log)
    check_log(log)
    assert (
        "merging the adapter receipts, rank 4: down_proj 2/2, gate_up_proj 2/2, o_proj 2/2" in log
    )
    assert "not in it: embeddings, head, norms, projector, separators, tower" in log


def get(server: LiveServer, path: str) -> Any:
    return httpx2.get(f"{server.url}{path}", headers={"api-key": API_KEY}).json()


def test_a_server_without_one_says_nothing_of_adapters(server: LiveServer) -> None:
    assert "adapter" not in get(server, "/info")
    assert "adapter" not in get(server, "/v1/models")["data"][0]


def test_what_is_no_adapter(tiny: Path) -> None:
    done = run("--model", str(tiny), "--lora", str(ROOT / "docs"), "--port", "0")
    assert "the adapter docs cannot be used: " in one_sentence(done)
    with pytest.raises(CheckpointError, match="not exist; --lora takes a directory or a Hub id"):
        find_adapter("/no/such/adapter")
    with pytest.raises(
        CheckpointError, match="is a file; --lora takes the directory of an adapter"
    ):
        find_adapter(str(ROOT / "README.md"))


def test_merge(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    done = run("merge", str(tiny), "--lora", str(adapter), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: merged rank 4: down_proj 2/2")
    assert "Writing weights" in done.stderr
    ours, theirs = (
        load_file(out / "model.safetensors"),
        merged_by_peft(tiny, adapter, torch.bfloat16),
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {file.name for file in out.iterdir()} == {file.name for file in tiny.iterdir()}
    for file in out.iterdir():
        if file.suffix == ".json":
            assert json.loads(file.read_text()) == json.loads((tiny / file.name).read_text())
    assert all(finding.ok for finding in check_checkpoint(out))
    again = run("merge", str(tiny), "--lora", str(adapter), "--out", str(out))
    assert "merged exists; --out takes the name of a new directory" in one_sentence(again)


def test_an_interrupted_merge_leaves_nothing(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    """It is stopped after the weights, before the other files."""
    flags = ["merge", str(tiny), "--lora", str(adapter), "--out", str(tmp_path / "out")]
    slow = (
        "import sys, threading, model.phi3v.adapters.export as export\n"
        "export._copy_others = lambda *_: (print('copying', flush=True), threading.Event().wait())\n"
        "from server.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "copying\n"
    assert list(tmp_path.glob(".out-*.partial/model.safetensors"))
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    assert "interrupted by SIGTERM; " in stderr
    assert "was not written" in stderr
    eventually(lambda: {path.name for path in tmp_path.iterdir()} == set())


def test_from_the_hub(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    with serve_hub() as hub:
        commit = "c" * 40
        files = {file.name: file.read_bytes() for file in adapter.iterdir()}
        files |= {"training_args.bin": b"pickle", "optimizer.safetensors": b"not wanted"}
        hub.repos["someone/receipts"] = Repo({commit: files}, {"main": commit, "v1": commit})
        hub.repos["someone/other"] = Repo({commit: {"config.json": b"{}"}}, {"main": commit})
        hosts: dict[str, Any] = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
        }
        flags = ("merge", str(tiny), "--out", str(tmp_path / "out"), "--lora")
        done = run(
            *flags, "someone/receipts", "--lora-revision", "v1", NO_PROXY="127.0.0.1", **hosts
        )
        assert done.returncode == 0, done.stderr
        assert hub.asked("HEAD", "adapter_model.safetensors")
        assert hub.asked("HEAD", "training_args") == hub.asked("HEAD", "optimizer") == []
        wrong = run(*flags, "someone/other", NO_PROXY="127.0.0.1", **hosts)
        assert "someone/other, revision main, has no adapter_config.json" in one_sentence(wrong)


def test_convert_a_checkpoint_of_pickles(copy: Path, tiny: Path, tmp_path: Path) -> None:
    """Whose names carry what a trainer left; refused before, with the command."""
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save({f"_orig_mod.{name}": t for name, t in tensors.items()}, copy / "pytorch_model.bin")
    refused = one_sentence(run("--model", str(copy), "--port", "0"))
    command = f"phi3v-server convert {copy} --out OUT"
    assert command in refused
    assert any(command in finding.text for finding in check_checkpoint(copy))
    done = run("convert", str(copy), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    assert all(finding.ok for finding in check_checkpoint(tmp_path / "out"))


def test_convert_an_adapter_of_pickles(adapter: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(adapter, old)
    tensors = load_file(old / WEIGHTS)
    torch.save(tensors, old / "adapter_model.bin")
    (old / WEIGHTS).unlink()
    done = run("convert", str(old), "--out", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    written = load_file(tmp_path / "new" / WEIGHTS)
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)


def rows(stdout: str) -> list[tuple[str, str]]:
    return [(line[:6].strip(), " ".join(line[6:].split())) for line in stdout.splitlines()]


def test_check_names_what_is_odd_and_served(copy: Path, adapter: Path) -> None:
    change_json(copy / "config.json", torch_dtype="float32")
    (copy / "training_args.bin").write_bytes(b"not read")
    rename_keys(
        copy / "model.safetensors",
        ("model.layers.0.", "base_model.model._orig_mod.model.layers.0."),
    )
    embedding = load_file(copy / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(
        copy / "model.safetensors", **{"model.vision_embed_tokens.wte.weight": embedding.clone()}
    )
    done = run("check", str(copy), "--lora", str(adapter))
    assert done.returncode == 0, done.stdout
    odd = [text for label, text in rows(done.stdout) if label == "odd"]
    assert odd.pop().startswith("receipts was trained on ")  # the adapter's base has another name
    assert odd == [
        "training_args.bin is a trainer's state, which is not read",
        "config.json torch_dtype is float32, so it is served in float32; --dtype bfloat16 takes half of the "
        "memory of float32",
        "names 6 are read under other names, e.g. base_model.model._orig_mod.model.layers.0."
        "input_layernorm.weight as model.layers.0.input_layernorm.weight",
        "model.vision_embed_tokens.wte.weight is a second copy of model.embed_tokens.weight; not read",
    ]
    assert rows(done.stdout)[-1] == ("ok", "checkpoint will be served")
    assert any(text.startswith("receipts rank 4: down_proj 2/2") for _, text in rows(done.stdout))


def test_check_names_what_is_not_served(copy: Path, tiny: Path, adapter: Path) -> None:
    advice = f"phi3v-server check MODEL --lora {adapter}"
    assert any(advice in finding.text and not finding.ok for finding in check_checkpoint(adapter))
    rename_keys(copy / "model.safetensors", ("o_proj.weight", "o_proj.base_layer.weight"))
    lora = {"model.layers.0.self_attn.o_proj.lora_A.default.weight": torch.zeros(4, 64)}
    change_tensors(copy / "model.safetensors", **lora)
    inside = run("check", str(copy))
    assert inside.returncode == 1
    assert "belongs to an adapter inside the checkpoint" in inside.stdout
    assert "phi3v-server: it will not be served, because of 1 problem\n" in inside.stderr
    started = run("--model", str(copy), "--port", "0")
    assert "contains an adapter that was not merged" in one_sentence(started)
    broken = adapter.with_name("broken")
    shutil.copytree(adapter, broken)
    change_json(broken / "adapter_config.json", r=5)
    (wrong,) = (finding for finding in check_checkpoint(tiny, broken) if not finding.ok)
    assert wrong.subject == "broken"
    assert "for rank 5" in wrong.text


def test_plan(tiny: Path, adapter: Path) -> None:
    done = run("plan", "--memory", "24", "--quantization", "int8")
    assert done.returncode == 0, done.stderr
    found = size(LoadOptions(model="microsoft/Phi-3-vision-128k-instruct", quantization="int8"), 24)
    assert f"{found.plan.weights / 2**30:.2f} GiB, int8" in done.stdout
    assert f"for {found.tokens} tokens" in done.stdout
    assert f"{found.sequences(3000)} of 3000 tokens fit; a step computes at most " in done.stdout
    assert "the model does not fit into memory" in one_sentence(run("plan", "--memory", "6"))
    own = run(
        "plan", "--memory", "2", "--device", "cpu", "--model", str(tiny), "--lora", str(adapter)
    )
    assert "adapter    receipts: merged into the weights" in own.stdout, own.stderr
