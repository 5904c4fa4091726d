"""How much may be in the making at a time, and what is; everything beyond is refused before it costs.

Knows nothing of the scheduler, which decides when what is admitted runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.engine.config import EngineConfig
from model.engine.request import SamplingParams
from model.errors import OverloadedError, RequestError
from model.phi3v.inputs.processing import PromptInputs

MOST_ALTERNATIVES = 1_000_000  # tokens whose log probabilities a request may be told
BYTES_OF_ALTERNATIVE = 128  # as it is told, in JSON


@dataclass(frozen=True)
class Load:
    """What a request holds.

    Attributes:
        tokens: of its prompt.
        image_bytes: of its image.
        logprob_bytes: of its answers' log probabilities, if those become as long as they may.
    """

    tokens: int
    image_bytes: int = 0
    logprob_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Of all its parts."""
        return self.image_bytes + self.logprob_bytes

    @classmethod
    def of(cls, inputs: PromptInputs, params: SamplingParams, longest: int) -> Load:
        """What ``inputs`` hold, and answers of ``longest`` tokens.

        Raises:
            RequestError: they would have too many log probabilities.
        """
        image_bytes = 0 if inputs.image is None else inputs.image.pixels.nbytes
        alternatives = 0
        if params.logprobs is not None:
            alternatives = params.n * longest * (1 + params.logprobs)
        if alternatives > MOST_ALTERNATIVES:
            raise RequestError(
                f"n={params.n} answers of up to {longest} tokens (max_tokens) with the log "
                f"probabilities of each and of {params.logprobs} more (top_logprobs) are "
                f"{alternatives} log probabilities; the limit is {MOST_ALTERNATIVES}: ask for fewer "
                "answers, tokens or alternatives",
                ("top_logprobs",),
                params.logprobs,
            )
        return cls(len(inputs.token_ids), image_bytes, alternatives * BYTES_OF_ALTERNATIVE)


class InFlight:
    """The answers that are prepared or unfinished, and what they hold together.

    Attributes:
        answers: how many there are.
        tokens: of their prompts.
        bytes: of what else they hold, see ``Load``.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.answers = 0
        self.tokens = 0
        self.bytes = 0

    def add(self, n: int) -> None:
        """Let in ``n`` answers, which ``remove`` lets go.

        Raises:
            RequestError: those would be too many even if there were no others.
            OverloadedError: those would be too many.
        """
        limit = self._config.max_num_seqs + self._config.max_waiting
        if n > limit:
            raise RequestError(
                f"n asks for {n} answers; this server makes at most {limit} at a time", ("n",), n
            )
        if self.answers + n > limit:
            raise OverloadedError(
                f"{self.answers} answers are in the making and the limit is {limit}; "
                "try again in a moment"
            )
        self.answers += n

    def remove(self, n: int) -> None:
        """Let go of ``n`` answers."""
        self.answers -= n

    def hold(self, load: Load) -> None:
        """Let in what answers hold, which ``release`` lets go.

        Raises:
            OverloadedError: there is too much of it; alone it would be served, however much it is.
        """
        if self.tokens:
            config = self._config
            if self.tokens + load.tokens > config.max_waiting_tokens:
                raise OverloadedError(
                    f"prompts of {self.tokens} tokens are in the making, this one has {load.tokens} "
                    f"and the limit is {config.max_waiting_tokens}; try again in a moment"
                )
            if load.bytes and self.bytes + load.bytes > config.max_waiting_bytes:
                raise OverloadedError(
                    f"images and log probabilities of {self.bytes} bytes are in the making, this "
                    f"request's take {load.bytes} and the limit is {config.max_waiting_bytes}; "
                    "try again in a moment"
                )
        self.tokens += load.tokens
        self.bytes += load.bytes

    def release(self, load: Load) -> None:
        """Let go of what answers held."""
        self.tokens -= load.tokens
        self.bytes -= load.bytes
