"""Names fields in errors as the client sent them, instead of as fields of the chat completion."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import model
from server.errors import ApiError, Loc

# Paths in the text of errors. Positions of messages may also be in words: "message 3 has 2 images".
PATH = re.compile(
    r"\b(?:messages|response_format|tools|tool_choice)(?:\.\w+)+"
    r"|\b(?:max_tokens|max_completion_tokens|response_format|reasoning_effort)\b|^verbosity\b"
    r"|\bmessage ([0-9]+)\b"
)
RENAMED: dict[Loc, Loc] = {
    ("messages",): ("input",),
    ("response_format",): ("text", "format"),
    ("max_tokens",): ("max_output_tokens",),
    ("max_completion_tokens",): ("max_output_tokens",),
    ("reasoning_effort",): ("reasoning", "effort"),
    ("verbosity",): ("text", "verbosity"),
}


class FieldNames:
    """Translates paths in a chat completion's body to paths in the body of a request for a response.

    Args:
        places: for each message, the path of the field or item that it was made of.
    """

    def __init__(self, places: Sequence[Loc] = ()) -> None:
        self._places = places

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Translate the errors that are raised within."""
        try:
            yield
        except ApiError as error:
            raise self._api_error(error) from error
        except model.ModelError as error:
            raise self.renamed(error) from error

    def renamed(self, error: model.ModelError) -> model.ModelError:
        """The same error with the client's names."""
        if not isinstance(error, model.RequestError):
            return error
        return type(error)(self._text(error.message), self.path(error.loc), error.value)

    def _api_error(self, error: ApiError) -> ApiError:
        problems = [
            problem._replace(loc=self.path(problem.loc), message=self._text(problem.message))
            for problem in error.problems
        ]
        text, loc = self._text(error.message), self.path(error.loc)
        return ApiError(
            error.status, error.code, text, loc, headers=error.headers, problems=problems
        )

    def path(self, loc: Loc) -> Loc:
        """Translate a path; one that is no field of a chat completion stays as it is."""
        match loc:
            case ("messages", int(position), *inside) if position < len(self._places):
                return self._in_message(self._places[position], tuple(inside))
            case ("response_format", "json_schema", *inside):
                return ("text", "format", *inside)
            case ("tools", int(position), "function", *inside):
                return ("tools", position, *inside)
            case ("tool_choice", "allowed_tools", "tools", int(position), "function", *inside):
                return ("tool_choice", "tools", position, *inside)
            case ("tool_choice", "function" | "allowed_tools", *inside):
                return ("tool_choice", *inside)
        return (*RENAMED.get(loc[:1], loc[:1]), *loc[1:])

    def _in_message(self, place: Loc, inside: Loc) -> Loc:
        if place[:1] != ("input",) or len(place) == 1:
            return place  # a field of its own, or a conversation that the request only names
        if inside[:1] != ("content",):
            return place[:2]
        inside = inside[1:]
        if inside[1:2] == ("image_url",):
            inside = inside[:2]  # the URL is not in an object
        return (*place, *inside)

    def _text(self, message: str) -> str:
        return PATH.sub(self._renamed_match, message)

    def _renamed_match(self, match: re.Match[str]) -> str:
        if match[1] is not None:
            steps: list[str] = ["messages", match[1]]
        else:
            steps = match[0].split(".")
        loc = tuple(int(step) if step.isdecimal() else step for step in steps)
        return ".".join(map(str, self.path(loc)))
