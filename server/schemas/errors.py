"""Body of an error, which satisfies all clients at once.

azure-core and openai read ``error``; Azure's REST samples read the flat ``status``, ``code`` and
``message``, and loop over ``detail``.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorObject(BaseModel):
    """The error as azure-core (OData) and OpenAI's clients look for it.

    Attributes:
        code: machine-readable, also in the header ``x-ms-error-code``.
        message: names the field, the limit and the remedy.
        type: OpenAI's class of the error.
        param: dotted path of the field at fault, if it is one.
        target: the same, by OData's name.
        status: of the response.
        details: always empty; OData has it.
    """

    code: str
    message: str
    type: str
    param: str | None
    target: str | None
    status: int
    details: list[Any] = []


class ErrorDetail(BaseModel):
    """One field at fault: where it stands, what was there, what is wrong with it."""

    loc: list[str | int]
    input: Any
    msg: str
    type: str


class ErrorBody(BaseModel):
    """Every answer that is not a success; ``detail`` is empty when no field is at fault."""

    error: ErrorObject
    status: int
    code: str
    message: str
    detail: list[ErrorDetail]
