"""Everything the model side can refuse, as one tree.

    ModelError
    ├── CheckpointError         the checkpoint cannot be loaded (start-up; never a user's fault)
    ├── RequestError            this request cannot be served as asked; carries the field at fault
    │   ├── ImageError          the image cannot be read or shaped into crops
    │   ├── ModalityError       something other than text and user images, or a remote image
    │   ├── TooManyImagesError  two images in one turn
    │   ├── GrammarError        what the answer must match cannot be used
    │   └── ContextLengthError  the prompt does not fit the context window
    ├── OverloadedError         the waiting queue is full; try again later
    ├── TookTooLongError        the answer was not finished in time
    ├── StepFailedError         the engine failed at this answer
    └── EngineDeadError         the engine thread has ended; nothing can be served any more

Knows nothing of status codes: ``server.errors`` maps these classes to HTTP.
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of all errors raised by this package."""


class CheckpointError(ModelError):
    """The checkpoint is missing, incomplete, or not a Phi-3-vision checkpoint."""


class RequestError(ModelError):
    """The request cannot be served as asked.

    Args:
        message: a sentence that names the value, the limit and the remedy.
        loc: path of the field at fault inside the request, e.g. ``("messages", 0, "content")``.
        value: the offending value, when it is small enough to show.
    """

    def __init__(self, message: str, loc: tuple[str | int, ...] = (), value: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.loc = loc
        self.value = value


class ImageError(RequestError):
    """The image cannot be read, is too large, or has a hopeless shape."""


class ModalityError(RequestError):
    """A kind of input that the model, or this place in the conversation, does not take."""


class TooManyImagesError(RequestError):
    """A turn holds more than one image."""


class GrammarError(RequestError):
    """A schema, expression or grammar that is broken, not supported, or too complex."""


class ContextLengthError(RequestError):
    """The prompt leaves no room for an answer in the context window."""


class OverloadedError(ModelError):
    """The waiting queue is full."""


class TookTooLongError(ModelError):
    """The answer was not finished in the time that there is for one.

    Args:
        seconds: that time.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the answer took longer than {seconds:g} seconds, the limit here; ask for fewer "
            "max_tokens, or try again when less is asked of the server"
        )


class StepFailedError(ModelError):
    """The engine failed at this answer; why is for the log alone."""

    def __init__(self) -> None:
        super().__init__("the engine failed at this answer; the server's log says why")


class EngineDeadError(ModelError):
    """The engine cannot serve requests any more."""

    def __init__(self) -> None:
        super().__init__("the engine has ended; the server must be restarted, and its log says why")
