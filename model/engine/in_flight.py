"""Limits on the requests in flight; requests beyond a limit are refused before any work is done.

The scheduler decides when an admitted sequence runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.engine.config import EngineConfig
from model.engine.request import SamplingParams
from model.errors import OverloadedError, RequestError
from model.phi3v.inputs.processing import PromptInputs

MOST_ALTERNATIVES = 1_000_000  # log probabilities that one request may ask for
BYTES_OF_ALTERNATIVE = 128  # in JSON


@dataclass(frozen=True)
class Footprint:
    """What a request in flight takes.

    Attributes:
        tokens: of its prompt.
        image_bytes: of its images.
        logprob_bytes: of its answers' log probabilities, at the maximum answer length.
    """

    tokens: int
    image_bytes: int = 0
    logprob_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of images and log probabilities."""
        return self.image_bytes + self.logprob_bytes

    @classmethod
    def of(cls, inputs: PromptInputs, params: SamplingParams, longest: int) -> Footprint:
        """The footprint of ``inputs`` and of answers of up to ``longest`` tokens.

        Raises:
            RequestError: the request asks for too many log probabilities.
        """
        image_bytes = sum(image.num_bytes for image in inputs.images)
        alternatives = 0
        if params.logprobs is not None:
            alternatives = params.n * longest * (1 + params.logprobs)
        if alternatives > MOST_ALTERNATIVES:
            raise RequestError(
                f"n={params.n} answers of up to {longest} tokens (max_tokens), each token with "
                f"{params.logprobs} alternatives (top_logprobs), have {alternatives} log "
                f"probabilities; the limit is {MOST_ALTERNATIVES}: ask for fewer answers, tokens or "
                "alternatives",
                ("top_logprobs",),
                params.logprobs,
            )
        return cls(len(inputs.token_ids), image_bytes, alternatives * BYTES_OF_ALTERNATIVE)


class InFlight:
    """Counts the sequences in flight and their footprint.

    Attributes:
        sequences: number in flight; each of a request's ``n`` answers is one.
        tokens: of their prompts.
        bytes: of their images and log probabilities.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.sequences = 0
        self.tokens = 0
        self.bytes = 0

    def add(self, n: int) -> None:
        """Admit ``n`` sequences; ``remove`` takes them out.

        Raises:
            RequestError: ``n`` alone exceeds the limit.
            OverloadedError: too many sequences are in flight.
        """
        limit = self._config.max_num_seqs + self._config.max_waiting
        if n > limit:
            raise RequestError(
                f"n is {n}; this server generates at most {limit} answers at a time", ("n",), n
            )
        if self.sequences + n > limit:
            raise OverloadedError(
                f"{self.sequences} answers are in flight, the limit is {limit}; try again in a moment"
            )
        self.sequences += n

    def remove(self, n: int) -> None:
        """Take out ``n`` sequences."""
        self.sequences -= n

    def hold(self, footprint: Footprint) -> None:
        """Admit a request's footprint; ``release`` takes it out.

        The only request in flight is always admitted.

        Raises:
            OverloadedError: the footprint of all requests would exceed a limit.
        """
        if self.tokens:
            config = self._config
            if self.tokens + footprint.tokens > config.max_waiting_tokens:
                raise OverloadedError(
                    f"{self.tokens} prompt tokens are in flight and this request has {footprint.tokens}, "
                    f"the limit is {config.max_waiting_tokens}; try again in a moment"
                )
            if footprint.bytes and self.bytes + footprint.bytes > config.max_waiting_bytes:
                raise OverloadedError(
                    f"images and log probabilities in flight take {self.bytes} bytes and this request's "
                    f"take {footprint.bytes}, the limit is {config.max_waiting_bytes}; try again in a "
                    "moment"
                )
        self.tokens += footprint.tokens
        self.bytes += footprint.bytes

    def release(self, footprint: Footprint) -> None:
        """Take out a request's footprint."""
        self.tokens -= footprint.tokens
        self.bytes -= footprint.bytes
