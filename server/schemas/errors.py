"""The body of errors, which suits all clients.

azure-core and openai read ``error``; Azure's REST samples read the flat ``status``, ``code`` and
``message``, and loop over ``detail``.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorObject(BaseModel):
    """The error in the form that azure-core (OData) and OpenAI's clients expect.

    Attributes:
        code: machine-readable code, also in the header ``x-ms-error-code``.
        message: names the field, the limit and the remedy.
        type: OpenAI's type of error.
        param: dotted path of the invalid field, if any.
        target: the same as ``param``, for OData.
        status: HTTP status of the response.
        details: always empty; required by OData.
    """

    code: str
    message: str
    type: str
    param: str | None
    target: str | None
    status: int
    details: list[Any] = []


class ErrorDetail(BaseModel):
    """An invalid field: its path, its value, and what is wrong with it."""

    loc: list[str | int]
    input: Any
    msg: str
    type: str


class ErrorBody(BaseModel):
    """The body of every error response; ``detail`` is empty unless fields are invalid."""

    error: ErrorObject
    status: int
    code: str
    message: str
    detail: list[ErrorDetail]
