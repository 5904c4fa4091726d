"""Instructor, which returns objects of a class, in its modes for chat completions and responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import instructor
from cells import IMAGE, KEY, LOOK, MODEL, QUESTION, REFUSED, URL, WRONG_KEY, report
from openai import OpenAI
from pets import Pet
from pydantic import BaseModel

SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 200, "max_retries": 1}
ASKED: Any = [{"role": "user", "content": QUESTION}]
SHOWN: Any = [{"role": "user", "content": [LOOK, instructor.Image.from_base64(IMAGE)]}]


class AnyObject(BaseModel):
    """What any JSON object fits."""


def cells(mode: instructor.Mode, kind: type[BaseModel] = Pet) -> dict[str, Callable[[], Any]]:
    def client(key: str = KEY) -> instructor.Instructor:
        return instructor.from_openai(OpenAI(base_url=f"{URL}/v1", api_key=key), mode=mode)

    def pet(messages: Any = ASKED, key: str = KEY, **changes: Any) -> dict[str, Any]:
        given = {**SETTINGS, **changes}
        found = client(key).create(response_model=kind, model=MODEL, messages=messages, **given)
        return dict(found.model_dump())

    def partial() -> list[Any]:
        stream = client().create_partial(
            response_model=kind, model=MODEL, messages=ASKED, **SETTINGS
        )
        return [each.model_dump() for each in stream]

    return {
        "structured": pet,
        "image": lambda: pet(SHOWN),
        "partial": partial,
        "error": lambda: pet(**REFUSED),
        "auth": lambda: pet(key=WRONG_KEY),
    }


def json_cells() -> dict[str, Callable[[], Any]]:
    """The mode that asks the model for the schema and the server for no more than a JSON object."""
    chosen = cells(instructor.Mode.JSON, AnyObject)
    return {name: chosen[name] for name in ("structured", "error", "auth")}


MODES = ("TOOLS", "JSON_SCHEMA", "RESPONSES_TOOLS")
report({mode: cells(instructor.Mode[mode]) for mode in MODES} | {"JSON": json_cells()})
