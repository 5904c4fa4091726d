"""What every client program shares: its arguments, its question, and how it reports.

A program is run as ``python PROGRAM URL KEY IMAGE`` and prints one JSON object: for each client, what
each of its cells returned or raised. A cell is a call as a user of that client would write it.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

URL, KEY, IMAGE = sys.argv[1:]  # the server's root, its API key, a data URL
WRONG_KEY = "wrong"
MODEL = "Phi-3-vision-128k-Instruct"
QUESTION = "How many languages are in the world?"
LOOK = "What is in this image?"
# Long enough that no machine is so busy that a stream of it comes in one piece.
SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 256}
STOP = " "  # found in every answer of the tests' model
REFUSED: dict[str, Any] = {"top_p": 2}  # beyond what the server accepts
PICTURE: list[dict[str, Any]] = [
    {"type": "text", "text": LOOK},
    {"type": "image_url", "image_url": {"url": IMAGE}},
]
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather at a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
}
PET: dict[str, Any] = {
    "name": "pet",
    "description": "A pet.",
    "parameters": {
        "type": "object",
        "properties": {
            "kind": {"enum": ["cat", "dog"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 30},
        },
        "required": ["kind", "age"],
        "additionalProperties": False,
    },
}


class AccessToken(NamedTuple):
    """What azure-core's class of that name has."""

    token: str
    expires_on: int


class Token:
    """A credential as azure-identity's are, whose token is an API key."""

    def __init__(self, key: str) -> None:
        self.key = key

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken(self.key, int(time.time()) + 3600)


def result(pieces: list[str], prompt_tokens: Any, completion_tokens: Any) -> dict[str, Any]:
    """The text that came, in how many pieces, and the usage as the client tells it."""
    return {
        "text": "".join(pieces),
        "pieces": len(pieces),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
    }


def told(answer: Any) -> dict[str, Any]:
    """The same of an answer in OpenAI's shape, which several clients give back as it is."""
    text = answer.choices[0].message.content
    return result([text], answer.usage.prompt_tokens, answer.usage.completion_tokens)


def told_stream(chunks: list[Any]) -> dict[str, Any]:
    """The same of a stream's chunks; the last one has the usage."""
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    usage = chunks[-1].usage
    return result(
        [piece for piece in pieces if piece], usage.prompt_tokens, usage.completion_tokens
    )


def report(clients: dict[str, dict[str, Callable[[], Any]]]) -> None:
    """Run all cells of all clients and print what became of them."""
    results: dict[str, dict[str, Any]] = {}
    for client, cells in clients.items():
        results[client] = {}
        for name, cell in cells.items():
            try:
                results[client][name] = {"returned": cell()}
            except Exception as error:
                results[client][name] = {
                    "raised": [cls.__name__ for cls in type(error).__mro__],
                    "status": getattr(error, "status_code", None),
                    "message": str(error),
                    "traceback": traceback.format_exc(),  # for the reader of a failed test
                }
    sys.stdout.write("\n" + json.dumps(results))  # the last line; clients may print before it
