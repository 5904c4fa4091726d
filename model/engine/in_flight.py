"""Limits on the requests in flight: what exceeds them is refused before any work is done.

Knows nothing of the scheduler, which decides when an admitted sequence runs.
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
class Footprint:
    """What a request holds in memory while it is in flight.

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
    def of(cls, inputs: PromptInputs, params: SamplingParams, longest: int) -> Footprint:
        """The footprint of ``inputs``, and of answers of up to ``longest`` tokens.

        Raises:
            RequestError: there would be too many log probabilities.
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
    """Counts the sequences being prepared, waiting or running, and their footprint.

    Attributes:
        sequences: how many are in flight; each of a request's ``n`` answers is one.
        tokens: of their prompts.
        bytes: of their images and log probabilities.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.sequences = 0
        self.tokens = 0
        self.bytes = 0

    def add(self, n: int) -> None:
        """Admit ``n`` sequences, until ``remove``.

        Raises:
            RequestError: those would be too many even if there were no others.
            OverloadedError: too many others are in flight.
        """
        limit = self._config.max_num_seqs + self._config.max_waiting
        if n > limit:
            raise RequestError(
                f"n asks for {n} answers; this server makes at most {limit} at a time", ("n",), n
            )
        if self.sequences + n > limit:
            raise OverloadedError(
                f"{self.sequences} answers are in the making and the limit is {limit}; "
                "try again in a moment"
            )
        self.sequences += n

    def remove(self, n: int) -> None:
        """Take ``n`` sequences out."""
        self.sequences -= n

    def hold(self, footprint: Footprint) -> None:
        """Admit a request's footprint, until ``release``.

        A request that is alone is admitted whatever its footprint.

        Raises:
            OverloadedError: together with the others' it is beyond a limit.
        """
        if self.tokens:
            config = self._config
            if self.tokens + footprint.tokens > config.max_waiting_tokens:
                raise OverloadedError(
                    f"prompts of {self.tokens} tokens are in the making, this one has {footprint.tokens} "
                    f"and the limit is {config.max_waiting_tokens}; try again in a moment"
                )
            if footprint.bytes and self.bytes + footprint.bytes > config.max_waiting_bytes:
                raise OverloadedError(
                    f"images and log probabilities of {self.bytes} bytes are in the making, this "
                    f"request's take {footprint.bytes} and the limit is {config.max_waiting_bytes}; "
                    "try again in a moment"
                )
        self.tokens += footprint.tokens
        self.bytes += footprint.bytes

    def release(self, footprint: Footprint) -> None:
        """Take a request's footprint out."""
        self.tokens -= footprint.tokens
        self.bytes -= footprint.bytes
