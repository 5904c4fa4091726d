"""Inputs and outputs of the engine: immutable values. Does not import torch."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from model.errors import GrammarError, ModelError, RequestError

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class GrammarSpec:
    """What an answer must match.

    Attributes:
        kind: format of ``source``.
        source: a JSON schema as JSON text, a regular expression, a grammar in Lark or GBNF syntax, or for
            ``calls`` a JSON list of functions, each an object with ``name`` and ``parameters``.
        loc: path of its field in the request, for errors.
        places: for ``calls``, the path of each function's parameters in the request.
    """

    kind: Literal["json_schema", "regex", "grammar", "calls"]
    source: str
    loc: tuple[str | int, ...] = ()
    places: tuple[tuple[str | int, ...], ...] = ()

    def error(self, reason: str, place: tuple[str | int, ...] = ()) -> GrammarError:
        """The error for an invalid grammar.

        Args:
            reason: what is wrong.
            place: path of the invalid part in ``source``; for ``calls``, the function's position and the
                path in its parameters.
        """
        loc = (*self.loc, *place)
        if self.kind == "calls" and place:
            loc = (*self.places[int(place[0])], *place[1:])
        name = ".".join(map(str, loc)) or "the grammar"
        return GrammarError(f"{name} cannot be used: {reason}", loc)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled and when an answer ends. The server validates the values.

    Attributes:
        temperature: divides the logits; 0 is greedy decoding.
        top_p: keep the most probable tokens up to this cumulative probability.
        top_k: keep this many of the most probable tokens; 0 keeps all.
        min_p: keep tokens with at least this probability relative to the most probable one.
        presence_penalty: subtracted from the logit of every token generated so far.
        frequency_penalty: the same, times the token's number of occurrences.
        repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt
            and the answer; 1 disables it.
        logit_bias: added to the logits of these token ids.
        seed: makes sampling reproducible; None draws a random seed.
        max_tokens: maximum answer length; None is the engine's default. The context window limits it.
        min_tokens: forbid stop tokens before this many tokens.
        stop: strings that end the answer and are not part of it.
        stop_token_ids: additional token ids that end the answer.
        ignore_eos: generate past the checkpoint's own stop tokens.
        logprobs: number of alternatives to report per token; None reports no log probabilities.
        grammar: what the answer must match; a stop string or stop token may still end it early.
        n: number of answers to the prompt; answer i is sampled with ``seed + i``.
        cache_salt: only requests with the same salt share cached prompts, images and grammars.
        skip_special_tokens: leave control tokens inside the answer out of its text.
        truncate_prompt_tokens: keep this many tokens at the end of a longer prompt; -1 keeps as many as
            leave room for the answer.
        priority: among waiting requests of one caller, lower ones start first.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: GrammarSpec | None = None
    n: int = 1
    cache_salt: str = ""
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    priority: int = 0

    def check_tokens(self, vocabulary: int) -> None:
        """Raise RequestError for token ids outside a vocabulary of this size."""
        named = {"logit_bias": self.logit_bias, "stop_token_ids": self.stop_token_ids}
        for field_name, token_ids in named.items():
            for token_id in token_ids:
                if not 0 <= token_id < vocabulary:
                    raise RequestError(
                        f"{field_name} has token id {token_id}; valid ids are 0 to {vocabulary - 1}",
                        (field_name,),
                        token_id,
                    )


@dataclass(frozen=True)
class Alternative:
    """A candidate token: its text, bytes and log probability."""

    text: str
    bytes: bytes
    logprob: float


Describe = Callable[[int], tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probabilities of the sampled token and the most probable ones, from raw float32 logits.

    Attributes:
        token_ids: the sampled one, then the most probable ones, best first.
        logprobs: of ``token_ids``.
        describe: maps a token id to its text and bytes.
    """

    token_ids: array[int]
    logprobs: array[float]
    describe: Describe = field(repr=False)

    @property
    def chosen(self) -> Alternative:
        """The sampled token."""
        return self._alternative(0)

    @property
    def top(self) -> tuple[Alternative, ...]:
        """The most probable tokens."""
        return tuple(map(self._alternative, range(1, len(self.token_ids))))

    def _alternative(self, position: int) -> Alternative:
        return Alternative(*self.describe(self.token_ids[position]), self.logprobs[position])


@dataclass(frozen=True)
class TextDelta:
    """What a step added to an answer.

    Attributes:
        index: which of the ``n`` answers.
        text: new text; empty while a character or a possible stop string is incomplete.
        token_ids: generated tokens, including those without text.
        finish_reason: set on the last delta of an answer.
        logprobs: of ``token_ids``, if requested.
        cached_tokens: number of prompt tokens from the prefix cache.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0


SequenceKey = tuple[int, int]  # request id and index of the answer
Result = TextDelta | ModelError


@dataclass(frozen=True)
class Output:
    """A step's output for one sequence: a delta, or the error that ended it."""

    key: SequenceKey
    result: Result
