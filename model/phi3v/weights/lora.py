"""What an adapter adds to a weight: LoRA on linear layers, embeddings and convolutions, and DoRA.

The results equal those of PEFT's ``merge_and_unload`` on a CPU bit for bit, because sums and products are
computed in float32 in the same order, on whole tensors, and rounded once.

Shape suffixes: N outputs, K inputs, R the adapter's rank, V rows of an embedding, S sides of a kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d


def add_to_linear(weight_NK: Tensor, down_RK: Tensor, up_NR: Tensor, scaling: float) -> Tensor:
    """``weight + up @ down * scaling``, in the weight's dtype."""
    delta_NK = (up_NR.float() @ down_RK.float()).mul_(scaling)
    return delta_NK.add_(weight_NK).to(weight_NK.dtype)


def add_dora_to_linear(
    weight_NK: Tensor, down_RK: Tensor, up_NR: Tensor, scaling: float, magnitude_N: Tensor
) -> Tensor:
    """Like ``add_to_linear``, with each output's weights scaled to a learned norm."""
    sum_NK = (up_NR.float() @ down_RK.float()).mul_(scaling).add_(weight_NK)
    factor_N = magnitude_N.float() / torch.linalg.norm(sum_NK, dim=1)
    return sum_NK.mul_(factor_N[:, None]).to(weight_NK.dtype)


def add_to_embedding(weight_VN: Tensor, down_RV: Tensor, up_NR: Tensor, scaling: float) -> Tensor:
    """``weight + (up @ down).T * scaling``, in the weight's dtype.

    PEFT rounds the update of an embedding before it adds it.
    """
    delta_VN = (up_NR.float() @ down_RV.float()).T.mul_(scaling)
    return weight_VN + delta_VN.to(weight_VN.dtype)


def add_to_convolution(
    weight_NKSS: Tensor, down_RKSS: Tensor, up_NR11: Tensor, scaling: float
) -> Tensor:
    """``weight`` plus the convolution that ``down`` followed by ``up`` amounts to."""
    delta_KNSS = conv2d(down_RKSS.float().transpose(0, 1), up_NR11.float())
    delta_NKSS = delta_KNSS.transpose(0, 1).mul_(scaling)
    return delta_NKSS.add_(weight_NKSS).to(weight_NKSS.dtype).contiguous()


def add_to_bias(bias_N: Tensor, up_N: Tensor, scaling: float) -> Tensor:
    """``bias + up * scaling``, in the bias's dtype."""
    return up_N.float().mul(scaling).add_(bias_N).to(bias_N.dtype)
