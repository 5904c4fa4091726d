"""Lines of OpenAI's batch files: requests as they are read, results as they are written."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

CustomId = Annotated[str, Field(min_length=1, max_length=512)]


class BatchRequest(BaseModel):
    """One line of the input; ``body`` is what would be posted to ``url``, OpenAI's or Azure's."""

    model_config = ConfigDict(extra="forbid")

    custom_id: CustomId
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/chat/completions"]
    body: dict[str, Any]


class BatchResponse(BaseModel):
    """What the server would have answered: the status, and the answer's or the error's body."""

    status_code: int
    request_id: str
    body: dict[str, Any]


class BatchError(BaseModel):
    """Why there is no answer.

    Attributes:
        code: machine-readable.
        message: names the field, the limit and the remedy.
        line: of the input, counted from 1.
    """

    code: str
    message: str
    line: int


class BatchResult(BaseModel):
    """One line of the output.

    Attributes:
        custom_id: the request's; None where the line has none of its own.
        error: None for an answer.
    """

    id: str
    custom_id: str | None
    response: BatchResponse
    error: BatchError | None = None
