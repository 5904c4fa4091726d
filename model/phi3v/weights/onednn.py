"""Linear layers in the memory layout that the CPU multiplies fastest.

oneDNN reorders a weight at every call unless it is given in its own layout. Packed once at load, a
decode step was measured 2 times (bfloat16) to 4 times (float32) faster; in bfloat16 the results are
the same bits. The packed copy replaces the weight, so a packed network cannot be saved or moved.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from tqdm import tqdm

from model.cpu.memory import release_weight
from model.phi3v.checkpoint import first_line
from model.phi3v.modeling import Phi3VForCausalLM

logger = logging.getLogger(__name__)


class OneDnnLinear(nn.Module):
    """An ``nn.Linear`` with its weight in oneDNN's layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")


def use_onednn(model: Phi3VForCausalLM) -> None:
    """Replace every linear layer of a network on the CPU by its packed form, in place.

    Where this torch or CPU cannot, the layers stay as they are, and the log says so.
    """
    reason = _unsupported_reason(model.dtype)
    if reason is not None:
        logger.warning("using unpacked linear layers, which is slower: %s", reason)
        return
    shared = model.model.embed_tokens.weight
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in tqdm(linears, desc="Packing weights"):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, OneDnnLinear(linear.weight.data, linear.bias))
        if linear.weight.data_ptr() != shared.data_ptr():  # a tied head's weight is still needed
            release_weight(linear)


def _unsupported_reason(dtype: torch.dtype) -> str | None:
    """Try packing on a small layer; None if it works and is right."""
    weight, x = torch.randn(48, 32).to(dtype), torch.randn(3, 32).to(dtype)
    try:
        difference = OneDnnLinear(weight, None)(x) - linear(x, weight)
    except (AttributeError, RuntimeError) as error:
        return first_line(error)
    if float(difference.abs().max()) > 0.1:
        return "packed layers return wrong results on this machine"
    return None
