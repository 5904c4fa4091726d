"""Every error that the model package raises, as one tree.

    ModelError
    ├── CheckpointError         the checkpoint cannot be loaded (at startup; never a client's fault)
    ├── RequestError            this request cannot be served; names the invalid field
    │   ├── ImageError          the image cannot be read or cut into crops
    │   ├── ModalityError       an input other than text and images of users, or a remote image
    │   ├── TooManyImagesError  more images than a prompt may have
    │   ├── GrammarError        the schema, regex or grammar is invalid
    │   └── ContextLengthError  the prompt does not fit the context window
    ├── OverloadedError         the waiting queue is full; try again later
    ├── TookTooLongError        the request took too long
    ├── StepFailedError         the engine failed to compute this answer
    └── EngineDeadError         the engine has stopped; no request can be served

``server.errors`` maps these classes to HTTP status codes.
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of all errors raised by this package."""


class CheckpointError(ModelError):
    """The checkpoint is missing, incomplete, or not a Phi-3-vision checkpoint."""


class RequestError(ModelError):
    """The request cannot be served.

    Args:
        message: one sentence naming the value, the limit and the remedy.
        loc: path of the invalid field in the request, e.g. ``("messages", 0, "content")``.
        value: the invalid value, if it is short enough to show.
    """

    def __init__(self, message: str, loc: tuple[str | int, ...] = (), value: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.loc = loc
        self.value = value


class ImageError(RequestError):
    """The image cannot be read, is too large, or is too elongated."""


class ModalityError(RequestError):
    """The model does not support this kind of input, or not in this message."""


class TooManyImagesError(RequestError):
    """A message holds more images than a prompt may have."""


class GrammarError(RequestError):
    """A schema, regex or grammar that is invalid, not supported, or too complex."""


class ContextLengthError(RequestError):
    """The prompt leaves no room for an answer in the context window."""


class OverloadedError(ModelError):
    """The waiting queue is full."""


class TookTooLongError(ModelError):
    """The request exceeded the time limit.

    Args:
        seconds: the limit.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the answer took longer than the limit of {seconds:g} seconds; ask for fewer max_tokens, "
            "or try again when the server is less busy"
        )


class StepFailedError(ModelError):
    """The engine failed to compute this answer; only the log says why."""

    def __init__(self) -> None:
        super().__init__("the engine failed to compute this answer; see the server's log")


class EngineDeadError(ModelError):
    """The engine has stopped and serves no more requests."""

    def __init__(self) -> None:
        super().__init__("the engine has stopped; see the server's log, and restart the server")
