"""Machines and models that the kernels do not support, each with its reason."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from model.gpu import launch
from model.gpu.support import unsupported_reason
from tests.support.servers.live_server import ROOT

CPU = torch.device("cpu")


def config(**changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32064,
        "hidden_act": "silu",
    }
    return SimpleNamespace(**(sizes | changes))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the kernels were to be compiled for a GPU of compute capability 9.0."""
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("model.gpu.support._triton_reason", lambda: None)


def test_the_official_model_is_supported_in_the_interpreter() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert unsupported_reason(config(), dtype, CPU) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": 32 * 12}, "the head size is 12; .* multiples of 8 from 16 to 256"),
        ({"hidden_size": 32 * 512}, "the head size is 512"),
        ({"hidden_size": 3000}, "the head size is 93.75"),
        ({"num_key_value_heads": 5}, "not a multiple of the key-value heads"),
        ({"hidden_act": "gelu"}, "the activation is 'gelu'"),
    ],
)
def test_models(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(unsupported_reason(config(**changes), torch.float16, CPU))


def test_dtypes() -> None:
    assert unsupported_reason(config(), torch.float64, CPU) == (
        "the kernels support float32, float16 and bfloat16, not torch.float64"
    )


@pytest.mark.usefixtures("compiled")
def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unsupported_reason(config(), torch.bfloat16, "cuda") is None
    assert unsupported_reason(config(), torch.float32, CPU) == (
        "the kernels run on NVIDIA GPUs, not on the device 'cpu'"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert unsupported_reason(config(), torch.float16, "cuda") is None
    assert unsupported_reason(config(), torch.bfloat16, "cuda") == (
        "a GPU of compute capability 7.5 runs the kernels in float16 only"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert unsupported_reason(config(), torch.float16, "cuda") == (
        "the GPU's compute capability is 7.0; 7.5 is required"
    )
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert unsupported_reason(config(), torch.float16, "cuda") == (
        "the kernels do not support AMD GPUs (ROCm)"
    )


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert unsupported_reason(config(), torch.float16, CPU) == "the package triton is not installed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_that_cannot_start_says_why() -> None:
    from model.gpu.support import _triton_reason

    reason = _triton_reason()
    assert reason is not None
    assert "0 active drivers" in reason
    assert "needs gcc and Python's header files" in reason


def test_asking_for_the_reason_imports_no_triton_by_itself() -> None:
    program = "import sys, model.gpu.support; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
