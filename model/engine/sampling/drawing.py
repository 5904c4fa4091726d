"""Draws one token per row from processed logits, all rows at once.

A sampled row derives one random number from its seed and position and looks it up in its cumulative
distribution. So the result does not depend on other rows, on the device's random state, or on whether
the token was guessed.

Shape suffixes: S sequences sampled in the step, R rows that are not greedy, V vocabulary,
K candidate tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.engine.request import SamplingParams
from model.phi3v.transfer import to_device

GREEDY_BELOW = 1e-5  # a temperature below this would overflow the scaled logits
CANDIDATES = 256  # most probable tokens; more need a sort of the whole vocabulary
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Row:
    """What a row's token depends on besides its logits.

    Attributes:
        params: sampling parameters.
        seed: of the sequence.
        position: number of the token in the answer, from 0.
    """

    params: SamplingParams
    seed: int
    position: int


class Draw(Protocol):
    """Chooses tokens."""

    def __call__(self, logits_SV: Tensor, rows: Rows[Row]) -> Tensor:
        """Tokens ``(S,)``, int64, from processed float32 logits."""
        ...


def make_draw(fused: bool, vocabulary: int) -> Draw:
    """The fastest ``Draw`` for a decoder's device.

    Args:
        fused: whether the decoder uses the kernels of ``model.gpu``.
        vocabulary: number of logits.
    """
    if fused:
        from model.gpu.support import LARGEST_VOCABULARY

        if vocabulary <= LARGEST_VOCABULARY:
            return draw_on_gpu
    return draw


def draw_on_gpu(logits_SV: Tensor, rows: Rows[Row]) -> Tensor:
    """A ``Draw`` of one kernel, without waiting for the device."""
    from model.gpu.sample import sample_rows

    params = [row.params for row in rows]
    floats = np.array([[p.temperature, p.top_p, p.min_p] for p in params], np.float32).T
    vocabulary = logits_SV.shape[-1]
    top_k = np.array([[min(p.top_k or 0, vocabulary) for p in params]], np.int32)
    small = np.concatenate([np.ascontiguousarray(floats).view(np.int32), top_k])
    large = np.array([[row.seed & MASK for row in rows], [row.position for row in rows]], np.uint64)
    device = logits_SV.device
    numbers = to_device(torch.from_numpy(small), device)
    seed_S, position_S = to_device(torch.from_numpy(large.view(np.int64)), device)
    temperature_S, top_p_S, min_p_S = numbers[:3].view(torch.float32)
    token_S = torch.empty_like(seed_S)
    sample_rows(
        logits_SV,
        temperature_S,
        numbers[3],
        top_p_S,
        seed_S,
        position_S,
        token_S,
        min_p_R=min_p_S if any(p.min_p for p in params) else None,
    )
    return token_S


def draw(logits_SV: Tensor, rows: Rows[Row]) -> Tensor:
    """A ``Draw`` of torch's operators."""
    token_S = logits_SV.argmax(dim=-1)
    sampled = [i for i, row in enumerate(rows) if row.params.temperature >= GREEDY_BELOW]
    if sampled:
        uniforms = [uniform(rows[i].seed, rows[i].position) for i in sampled]
        params = [rows[i].params for i in sampled]
        token_S[sampled] = _draw_rows(logits_SV[sampled], params, uniforms)
    return token_S


def _draw_rows(logits_RV: Tensor, params: Rows[SamplingParams], uniforms: Rows[float]) -> Tensor:
    """Sample rows by temperature, top_k, top_p and min_p; returns int64 ``(R,)``."""
    device = logits_RV.device
    temperature_R = torch.tensor([p.temperature for p in params], device=device)
    scaled_RV = logits_RV / temperature_R[:, None]
    uniform_R = torch.tensor(uniforms, dtype=torch.float64, device=device)
    token_R = torch.empty(len(params), dtype=torch.int64, device=device)
    whole = [i for i, p in enumerate(params) if p.top_p >= 1 and not p.top_k and not p.min_p]
    if whole:
        token_R[whole] = _invert(scaled_RV[whole].softmax(-1), uniform_R[whole])
    cut = [i for i in range(len(params)) if i not in whole]
    if cut:
        token_R[cut] = _draw_cut(scaled_RV[cut], uniform_R[cut], [params[i] for i in cut])
    return token_R


@dataclass(frozen=True)
class _Cuts:
    """Truncation parameters of some rows; a ``top_k_R`` of ``vocabulary`` keeps all tokens."""

    vocabulary: int
    top_k_R: Tensor
    top_p_R: Tensor
    min_p_R: Tensor

    @classmethod
    def of(cls, params: Rows[SamplingParams], vocabulary: int, device: torch.device) -> _Cuts:
        return cls(
            vocabulary,
            torch.tensor([min(p.top_k or vocabulary, vocabulary) for p in params], device=device),
            torch.tensor([p.top_p for p in params], device=device),
            torch.tensor([p.min_p for p in params], device=device),
        )

    def rows(self, which: Tensor) -> _Cuts:
        return _Cuts(self.vocabulary, self.top_k_R[which], self.top_p_R[which], self.min_p_R[which])

    def weights(self, prob_RK: Tensor) -> Tensor:
        """Probabilities of candidates, best first, with truncated ones set to 0."""
        rank_K = torch.arange(prob_RK.shape[1], device=prob_RK.device)
        weight_RK = prob_RK * (rank_K < self.top_k_R[:, None])
        # top_p is relative to the probability that top_k leaves.
        before_RK = weight_RK.cumsum(-1) - weight_RK
        mass_R = torch.where(self.top_k_R == self.vocabulary, 1.0, weight_RK.sum(-1))
        in_top_p_RK = before_RK < (self.top_p_R * mass_R)[:, None]
        in_min_p_RK = prob_RK >= self.min_p_R[:, None] * prob_RK[:, :1]
        in_top_p_RK[:, 0] = True  # top_p of 0 keeps the best token
        return weight_RK * (in_top_p_RK & in_min_p_RK)


def _draw_cut(scaled_RV: Tensor, uniform_R: Tensor, params: Rows[SamplingParams]) -> Tensor:
    """Sample truncated rows, from their most probable tokens if those suffice."""
    vocabulary = scaled_RV.shape[-1]
    cuts = _Cuts.of(params, vocabulary, scaled_RV.device)
    prob_RV = scaled_RV.softmax(-1)
    best = prob_RV.topk(min(CANDIDATES, vocabulary))
    # They suffice if top_k is within the candidates, or if it is unset and they reach top_p.
    enough_R = (cuts.top_k_R <= best.values.shape[1]) | (
        (cuts.top_k_R == vocabulary) & (best.values.sum(-1) > cuts.top_p_R)
    )
    token_R = torch.empty_like(cuts.top_k_R)

    def draw(rows_R: Tensor, prob_RK: Tensor, index_RK: Tensor) -> None:
        weight_RK = cuts.rows(rows_R).weights(prob_RK)
        chosen_R = _invert(weight_RK, uniform_R[rows_R])
        token_R[rows_R] = index_RK.gather(1, chosen_R[:, None])[:, 0]

    if bool(enough_R.any()):
        draw(enough_R, best.values[enough_R], best.indices[enough_R])
    if not bool(enough_R.all()):
        draw(~enough_R, *prob_RV[~enough_R].sort(dim=-1, descending=True))
    return token_R


def _invert(weight_RK: Tensor, uniform_R: Tensor) -> Tensor:
    """Index at which each row's cumulative weight exceeds its uniform number times the total."""
    cumulative_RK = weight_RK.double().cumsum(-1)
    total_R = cumulative_RK[:, -1]
    target_R = torch.minimum(uniform_R * total_R, total_R.nextafter(torch.zeros_like(total_R)))
    index_R = torch.searchsorted(cumulative_RK, target_R[:, None], right=True)[:, 0]
    # With NaN weights the search returns the end; the index must still be valid.
    return index_R.clamp_(max=weight_RK.shape[1] - 1)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends only on seed and position (SplitMix64)."""
    z = (_mix(seed & MASK) + 0x9E3779B97F4A7C15 * (position + 1)) & MASK
    return (_mix(z) >> 11) / (1 << 53)


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)
