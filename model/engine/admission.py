"""How much may be in the making at a time, and what is; everything beyond is refused before it costs.

Knows nothing of the scheduler, which decides when what is admitted runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.engine.config import EngineConfig
from model.errors import OverloadedError, RequestError
from model.phi3v.processing import PromptInputs


@dataclass(frozen=True)
class Load:
    """What a request holds: tokens of its prompt, and bytes of its image."""

    tokens: int
    image_bytes: int

    @classmethod
    def of(cls, inputs: PromptInputs) -> Load:
        """What ``inputs`` hold."""
        image_bytes = 0 if inputs.image is None else inputs.image.pixels.nbytes
        return cls(len(inputs.token_ids), image_bytes)


class InFlight:
    """The answers that are prepared or unfinished, and what they hold together.

    Attributes:
        answers: how many there are.
        tokens: of their prompts.
        image_bytes: of their images.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.answers = 0
        self.tokens = 0
        self.image_bytes = 0

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
            if self.image_bytes + load.image_bytes > config.max_waiting_bytes:
                raise OverloadedError(
                    f"images of {self.image_bytes} bytes are in the making and the limit is "
                    f"{config.max_waiting_bytes}; try again in a moment"
                )
        self.tokens += load.tokens
        self.image_bytes += load.image_bytes

    def release(self, load: Load) -> None:
        """Let go of what answers held."""
        self.tokens -= load.tokens
        self.image_bytes -= load.image_bytes
