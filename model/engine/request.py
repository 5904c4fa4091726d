"""What travels into the engine and out of it: immutable, torch-free."""

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
        kind: what ``source`` is.
        source: a JSON schema as JSON text, a regular expression, or a grammar in Lark's or GBNF's
            syntax.
        loc: where it stands in the request, for errors.
    """

    kind: Literal["json_schema", "regex", "grammar"]
    source: str
    loc: tuple[str | int, ...] = ()

    def error(self, reason: str, place: tuple[str | int, ...] = ()) -> GrammarError:
        """That it cannot be used, and why; ``place`` is the part of ``source`` at fault."""
        loc = (*self.loc, *place)
        name = ".".join(map(str, loc)) or "the grammar"
        return GrammarError(f"{name} cannot be used: {reason}", loc)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when an answer ends. Values are validated at the server's door.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: keep the most probable tokens up to this mass.
        top_k: keep this many most probable tokens; 0 keeps all.
        min_p: keep tokens at least this probable relative to the most probable one.
        presence_penalty: subtracted from the logit of every token generated so far.
        frequency_penalty: the same, times how often it was generated.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen so far,
            prompt included; 1 changes nothing.
        logit_bias: added to the logits of these token ids.
        seed: same seed, same prompt, same answer; None draws one.
        max_tokens: None is the engine's default; never beyond the context window.
        min_tokens: no stop token before this many tokens.
        stop: strings that end the answer and are not part of it.
        stop_token_ids: further ids that end the answer.
        ignore_eos: generate past the checkpoint's own stop tokens.
        logprobs: how many alternatives to report per token; None reports nothing.
        grammar: what the answer must match, whatever the other parameters; a stop string or stop
            token that comes before its end cuts it off.
        n: answers to the same prompt; answer i is sampled with ``seed + i``.
        cache_salt: what is computed of the prompt is shared with requests of the same salt only.
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

    def check_tokens(self, vocabulary: int) -> None:
        """Raise RequestError for ids of tokens that are not in a vocabulary of that size."""
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
    """A token the model might have chosen: its text, its bytes and its log probability."""

    text: str
    bytes: bytes
    logprob: float


Describe = Callable[[int], tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The chosen token and the most probable ones, from the raw logits in float32.

    Attributes:
        token_ids: the chosen one, then the most probable ones, best first.
        logprobs: theirs.
        describe: from a token's id to its text and its bytes.
    """

    token_ids: array[int]
    logprobs: array[float]
    describe: Describe = field(repr=False)

    @property
    def chosen(self) -> Alternative:
        """The chosen token."""
        return self._alternative(0)

    @property
    def top(self) -> tuple[Alternative, ...]:
        """The most probable ones."""
        return tuple(map(self._alternative, range(1, len(self.token_ids))))

    def _alternative(self, position: int) -> Alternative:
        return Alternative(*self.describe(self.token_ids[position]), self.logprobs[position])


@dataclass(frozen=True)
class TextDelta:
    """What one step added to one answer.

    Attributes:
        index: which of the ``n`` answers.
        text: new text; may be empty while a character or a possible stop string is incomplete.
        token_ids: tokens generated, also those that add no text.
        finish_reason: set on the last delta of an answer.
        logprobs: of ``token_ids``, when asked for.
        cached_tokens: how many of the prompt's tokens were found computed when it was begun.
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
    """What a step yields for one sequence: a delta, or the error that ended it."""

    key: SequenceKey
    result: Result
