"""GPUs that torch cannot use: found by their device files, and refused with torch's own reason."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
import torch

from model import CheckpointError, LoadOptions
from model.engine.config import Device
from model.engine.loading import load, unusable_gpu
from model.engine.loading.unusable_gpu import HIDDEN
from model.starting import find_and_load

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU here")
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version"
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine, and nothing that hides its GPUs."""
    (tmp_path / "dev").mkdir()
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def with_gpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a GPU of NVIDIA's, which is taken for this one."""
    (root / "dev/nvidia0").touch()
    find = unusable_gpu.unusable_gpu
    monkeypatch.setattr(load, "unusable_gpu", lambda: find(root))
    return root


@pytest.mark.parametrize("file", ["nvidia0", "nvidia3", "kfd"])
def test_a_device_file_tells_of_a_gpu(root: Path, file: str) -> None:
    (root / "dev" / file).touch()
    reason = unusable_gpu.unusable_gpu(root)
    assert reason is not None
    assert (
        f"this machine has a GPU (/dev/{file}) that torch {torch.__version__} cannot use" in reason
    )


@pytest.mark.parametrize("file", ["null", "nvidiactl", "nvidia-uvm", "dri"])
def test_other_files_tell_of_none(root: Path, file: str) -> None:
    (root / "dev" / file).touch()
    assert unusable_gpu.unusable_gpu(root, {}) is None


def test_windows_tells_of_any_gpu_and_the_library_of_nvidias(root: Path) -> None:
    (root / "dev/dxg").touch()
    assert unusable_gpu.unusable_gpu(root, {}) is None
    library = root / "usr/lib/wsl/lib/libcuda.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    assert "(/dev/dxg)" in str(unusable_gpu.unusable_gpu(root, {}))


@pytest.mark.parametrize(
    "variable",
    ["CUDA_VISIBLE_DEVICES=", "CUDA_VISIBLE_DEVICES=-1", "NVIDIA_VISIBLE_DEVICES=void"],
)
def test_gpus_can_be_hidden_on_purpose(root: Path, variable: str) -> None:
    (root / "dev/nvidia0").touch()
    name, _, value = variable.partition("=")
    assert unusable_gpu.unusable_gpu(root, {name: value}) is None
    assert unusable_gpu.unusable_gpu(root, {name: "0"}) is not None


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for GPUs")
def test_a_build_for_cpus_is_refused_in_its_own_words(with_gpu: Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        load.devices_for(LoadOptions("someone/model"))
    sentence = str(refused.value)
    assert "cannot use: Torch not compiled with CUDA enabled; install a build of torch" in sentence
    assert sentence.endswith("or use --device cpu, which is slow")


def test_an_old_driver_is_refused_in_torchs_words(
    with_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        raise RuntimeError(OLD_DRIVER)

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    begins: dict[Device, str] = {"auto": "this machine has a GPU", "cuda": "--device cuda: "}
    for device, begin in begins.items():
        with pytest.raises(CheckpointError) as refused:
            load.devices_for(LoadOptions("someone/model", device=device))
        sentence = str(refused.value)
        assert sentence.startswith(begin)
        assert f"{OLD_DRIVER}; install a driver that supports CUDA 13.0" in sentence
        assert "--device cpu" in sentence


def test_a_driver_too_old_for_torch_is_no_gpu(
    with_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's library for management works, so torch counts its GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(CheckpointError, match="this machine has a GPU"):
        load.devices_for(LoadOptions("someone/model"))
    with pytest.raises(CheckpointError, match="--device cuda: torch finds no CUDA device"):
        load.devices_for(LoadOptions("someone/model", device="cuda"))


def test_a_gpu_that_computes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one that this build of torch has no kernels for."""
    monkeypatch.setattr(load, "usable_gpus", lambda: 1)
    for device in ("auto", "cuda"):
        with pytest.raises(CheckpointError, match=r"cannot use cuda:0: .*; install .*--device cpu"):
            load.devices_for(LoadOptions("someone/model", device=device))
    assert load.devices_for(LoadOptions("someone/model", device="cpu")) == [torch.device("cpu")]
    assert load.devices_for(LoadOptions("demo")) == [torch.device("cpu")]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(CheckpointError, match="cannot use cuda:0"):
        load.devices_for(LoadOptions("demo", device="cuda"))


def test_the_demo_is_served_on_the_cpu_with_a_warning(
    with_gpu: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load.devices_for(LoadOptions("demo")) == [torch.device("cpu")]
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.WARNING
    assert message.startswith("running on the CPU: this machine has a GPU (/dev/nvidia0)")


def test_a_cpu_that_is_asked_for_is_used(with_gpu: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load.devices_for(LoadOptions("someone/model", device="cpu")) == [torch.device("cpu")]
    assert not caplog.records


def test_a_machine_without_a_gpu_is_used_silently(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(load, "unusable_gpu", lambda: unusable_gpu.unusable_gpu(root))
    assert load.devices_for(LoadOptions("someone/model")) == [torch.device("cpu")]
    assert not caplog.records


def test_nothing_is_downloaded_before(with_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.hub.find_checkpoint", lambda *_: pytest.fail("downloads"))
    with pytest.raises(CheckpointError, match="this machine has a GPU"):
        asyncio.run(find_and_load(LoadOptions("someone/model")))
