"""Draws one token per row from a step's logits, without a sort and without the host.

A row depends on its own logits, seed and position alone, as in ``model.engine.sampling.sampler``.

Shape suffixes: R rows, V vocabulary.
"""

from __future__ import annotations

import triton
from torch import Tensor

from model.gpu.launch import Traffic, launch
from model.gpu.sample_kernel import sample_kernel
from model.gpu.support import LARGEST_VOCABULARY

THREADS = 512
GREEDY_BELOW = 1e-5  # as in the CPU's sampler


def sample_rows(
    logits_RV: Tensor,
    temperature_R: Tensor,
    top_k_R: Tensor,
    top_p_R: Tensor,
    seed_R: Tensor,
    position_R: Tensor,
    out_R: Tensor,
    *,
    min_p_R: Tensor | None = None,
) -> None:
    """Write each row's token to ``out_R``.

    Args:
        logits_RV: float32, contiguous.
        temperature_R: float32; below 1e-5 a row takes its largest logit, at the lowest index.
        top_k_R: int32; 0 keeps all tokens.
        top_p_R: float32; 1 keeps all tokens.
        seed_R: the lower 64 bits of each sequence's seed, as int64.
        position_R: int64 number of the token in the sequence's output, from 0.
        out_R: int64.
        min_p_R: float32, relative to the largest probability; None if no row uses it.

    Raises:
        ValueError: the vocabulary is larger than a program can hold.
    """
    rows, vocabulary = logits_RV.shape
    if vocabulary > LARGEST_VOCABULARY:
        raise ValueError(
            f"the vocabulary has {vocabulary} tokens; the GPU's sampler supports "
            f"{LARGEST_VOCABULARY}"
        )
    launch(
        sample_kernel,
        (rows,),
        logits_RV,
        temperature_R,
        top_k_R,
        top_p_R,
        min_p_R if min_p_R is not None else top_p_R,
        seed_R,
        position_R,
        out_R,
        traffic=lambda: Traffic(logits_RV.nbytes + rows * 28, rows * 8),
        VOCABULARY=vocabulary,
        GREEDY_BELOW=GREEDY_BELOW,
        HAS_MIN_P=min_p_R is not None,
        OUTER=triton.next_power_of_2(triton.cdiv(vocabulary, 4 * THREADS)),
        THREADS=THREADS,
        num_warps=THREADS // 32,
    )
