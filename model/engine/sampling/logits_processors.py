"""Logits processors: bias, penalties and ``min_tokens``.

They change only the rows of sequences that use them; a row never depends on other rows.

Shape suffixes: S sequences sampled in the step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from model.engine.request import SamplingParams
from model.engine.scheduling.sequence import Sequence
from model.phi3v.transfer import to_device

LARGEST = 1e30  # magnitude of a processed logit: stays finite when divided by a temperature


def process(logits_SV: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Apply all processors, in the order of OpenAI and vLLM, to a copy."""
    asking = [row for row, sequence in enumerate(sequences) if _asks(sequence.params)]
    if not asking:
        return logits_SV
    logits_SV = logits_SV.clone()
    for row in asking:
        _repetition(logits_SV[row], sequences[row])
        _presence_and_frequency(logits_SV[row], sequences[row])
        _bias(logits_SV[row], sequences[row])
        _not_yet(logits_SV[row], sequences[row])
        # Otherwise an infinite logit, or a row of forbidden tokens only, makes the softmax NaN.
        logits_SV[row].nan_to_num_(nan=-LARGEST, posinf=LARGEST, neginf=-LARGEST)
        logits_SV[row].clamp_(-LARGEST, LARGEST)
    return logits_SV


def _asks(params: SamplingParams) -> bool:
    return bool(
        params.logit_bias
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1
        or params.min_tokens
    )


def _repetition(logits_V: Tensor, sequence: Sequence) -> None:
    penalty = sequence.params.repetition_penalty
    if penalty == 1:
        return
    seen_V = sequence.counts(sequence.token_ids, logits_V) > 0
    changed_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
    logits_V.copy_(torch.where(seen_V, changed_V, logits_V))


def _presence_and_frequency(logits_V: Tensor, sequence: Sequence) -> None:
    params = sequence.params
    if not (params.presence_penalty or params.frequency_penalty):
        return
    times_V = sequence.output_counts(sequence.token_ids, logits_V)
    penalty_V = params.presence_penalty + params.frequency_penalty * times_V
    logits_V.copy_(torch.where(times_V > 0, logits_V - penalty_V, logits_V))


def _bias(logits_V: Tensor, sequence: Sequence) -> None:
    bias = sequence.params.logit_bias
    if bias:
        values = torch.tensor(list(bias.values()), dtype=logits_V.dtype)
        logits_V[_ids(list(bias), logits_V)] += to_device(values, logits_V.device)


def _not_yet(logits_V: Tensor, sequence: Sequence) -> None:
    """Forbid stop tokens before ``min_tokens``."""
    if sequence.num_output < sequence.params.min_tokens and sequence.stop_ids:
        logits_V.index_fill_(0, _ids(list(sequence.stop_ids), logits_V), -torch.inf)


def _ids(token_ids: list[int], logits_V: Tensor) -> Tensor:
    return to_device(torch.tensor(token_ids, dtype=torch.int64), logits_V.device)
