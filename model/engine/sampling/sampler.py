"""Samples one token per row from a step's logits, all rows at once.

Log probabilities are of the raw logits, before penalties and temperature. The device is waited for
once, when everything is computed.

Shape suffixes: S sequences sampled in the step, R rows with log probabilities, V vocabulary,
K most probable tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.sampling.drawing import Draw, Row, draw
from model.engine.sampling.logits_processors import process
from model.engine.sampling.token_masks import TokenMasks
from model.engine.scheduling.sequence import Sequence
from model.phi3v.transfer import to_device, to_host


@dataclass(frozen=True)
class Sample:
    """A sampled token, with log probabilities if requested.

    Attributes:
        top: the most probable tokens and their log probabilities, best first.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(
    logits_SV: Tensor,
    sequences: Rows[Sequence],
    token_masks: TokenMasks | None = None,
    ahead: Rows[int] | None = None,
    choose: Draw = draw,
) -> list[Sample]:
    """Sample the next token of each row.

    Args:
        logits_SV: raw float32 logits of the step.
        sequences: the sequence of each row.
        token_masks: masks of sequences with grammars.
        ahead: number of guessed tokens between a sequence's end and the row's token.
        choose: chooses tokens from processed logits.
    """
    processed_SV = process(logits_SV, sequences)
    if token_masks is not None:
        processed_SV = token_masks.apply(processed_SV, sequences)
    numbers = ahead or [0] * len(sequences)
    rows = [
        Row(sequence.params, sequence.seed, sequence.num_output + number)
        for sequence, number in zip(sequences, numbers, strict=True)
    ]
    token_S = choose(processed_SV, rows)
    asked = {i: s.params.logprobs for i, s in enumerate(sequences) if s.params.logprobs is not None}
    if not asked:
        (token_S,) = to_host(token_S)
        return [Sample(token_id) for token_id in token_S.tolist()]
    reported_R = to_device(torch.tensor(list(asked)), logits_SV.device)
    logprob_RV = torch.log_softmax(logits_SV.index_select(0, reported_R), dim=-1)
    chosen_R1 = logprob_RV.gather(1, token_S.index_select(0, reported_R)[:, None])
    best = logprob_RV.topk(max(asked.values()))
    token_S, chosen_R1, value_RK, index_RK = to_host(token_S, chosen_R1, best.values, best.indices)
    samples = [Sample(token_id) for token_id in token_S.tolist()]
    for (i, top), chosen, values, indices in zip(
        asked.items(), chosen_R1.tolist(), value_RK.tolist(), index_RK.tolist(), strict=True
    ):
        pairs = tuple(zip(indices[:top], values[:top], strict=True))
        samples[i] = Sample(samples[i].token_id, chosen[0], pairs)
    return samples
