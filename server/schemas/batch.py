"""Lines of OpenAI's batch files: requests and results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

CustomId = Annotated[str, Field(min_length=1, max_length=512)]


class BatchRequest(BaseModel):
    """One line of the input; ``body`` is the request body for ``url``."""

    model_config = ConfigDict(extra="forbid")

    custom_id: CustomId
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/chat/completions", "/v1/responses"]
    body: dict[str, Any]


class BatchResponse(BaseModel):
    """The status and body that the server would have returned."""

    status_code: int
    request_id: str
    body: dict[str, Any]


class BatchError(BaseModel):
    """The error of a failed request.

    Attributes:
        code: machine-readable code.
        message: names the field, the limit and the remedy.
        line: line number in the input, from 1.
    """

    code: str
    message: str
    line: int


class BatchResult(BaseModel):
    """One line of the output.

    Attributes:
        custom_id: the request's; None if the line has no valid, unique one.
        error: None if the request succeeded.
    """

    id: str
    custom_id: str | None
    response: BatchResponse
    error: BatchError | None = None
