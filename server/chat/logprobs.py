"""Serializes log probabilities as tokens arrive, so that completions keep only bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import isfinite

from pydantic_core import to_json

import model

NumberWriter = Callable[[Sequence[float]], list[str]]


def json_numbers(numbers: Sequence[float]) -> list[str]:
    """Format numbers like Python's ``json``, for responses of routes; non-finite ones as null."""
    return [float.__repr__(number) if isfinite(number) else "null" for number in numbers]


def pydantic_numbers(numbers: Sequence[float]) -> list[str]:
    """Format numbers like pydantic, for streams and batch results."""
    return to_json(list(numbers), inf_nan_mode="null").decode()[1:-1].split(",")


def logprobs_json(tokens: Sequence[model.TokenLogprob], write_numbers: NumberWriter) -> bytes:
    """The JSON of the tokens (see ``server.schemas.responses.TokenLogprob``), comma-separated."""
    return ",".join(map("".join, (_parts(token, write_numbers) for token in tokens))).encode()


def _parts(token: model.TokenLogprob, write_numbers: NumberWriter) -> Iterator[str]:
    logprobs = write_numbers(token.logprobs)
    around = [_around(token.describe, token_id) for token_id in token.token_ids]
    (begin, end), *others = around
    yield f'{begin}{logprobs[0]}{end},"top_logprobs":['
    yield ",".join(
        f"{begin}{logprob}{end}}}"
        for (begin, end), logprob in zip(others, logprobs[1:], strict=True)
    )
    yield "]}"


@lru_cache(1 << 16)  # more than the vocabulary
def _around(describe: model.Describe, token_id: int) -> tuple[str, str]:
    """The parts of a token's JSON before and after its log probability."""
    text, raw = describe(token_id)
    token = json.dumps(text, ensure_ascii=False)
    return f'{{"token":{token},"logprob":', f',"bytes":[{",".join(map(str, raw))}]'
