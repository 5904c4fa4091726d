"""Converts errors of the model and of pydantic to ApiErrors."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

import model
from server.errors.api_error import MOST_PROBLEMS, ApiError, Loc, Problem, dotted, short_path
from server.errors.kinds import retry_after

# Replacements for pydantic's messages that use Python terms.
IN_JSON = {
    "model_type": "Input should be an object",
    "dict_type": "Input should be an object",
    "list_type": "Input should be a list",
}
# The first class in the error's MRO that is listed here applies.
MODEL_ERRORS: dict[type[model.ModelError], tuple[int, str]] = {
    model.ContextLengthError: (400, "context_length_exceeded"),
    model.TooManyImagesError: (422, "too_many_images"),
    model.ModalityError: (422, "modality_not_supported"),
    model.ImageError: (422, "invalid_image"),
    model.GrammarError: (422, "invalid_grammar"),
    model.RequestError: (422, "invalid_parameter"),
    model.OverloadedError: (429, "too_many_requests"),
    model.TookTooLongError: (408, "request_timeout"),
    model.EngineDeadError: (503, "engine_dead"),
    model.ModelError: (500, "internal_error"),
}


def from_model_error(error: model.ModelError) -> ApiError:
    """Convert an error of the model."""
    status, code = next(MODEL_ERRORS[cls] for cls in type(error).__mro__ if cls in MODEL_ERRORS)
    if isinstance(error, model.RequestError):
        return ApiError(status, code, error.message, error.loc, error.value)
    headers = retry_after() if status in (429, 503) else {}
    if isinstance(error, model.TookTooLongError):
        headers = {
            "x-should-retry": "false"
        }  # otherwise OpenAI's clients retry twice, each as slow
    return ApiError(status, code, str(error), headers=headers)


def from_validation_error(error: ValidationError, body: object) -> ApiError:
    """The error for a body that does not match the schema; lists the invalid fields."""
    problems = []
    details = error.errors(include_url=False, include_context=False)
    for detail in details[:MOST_PROBLEMS]:
        missing = detail["type"] == "missing"
        loc = short_path(_path_in(body, detail["loc"], missing))
        reason = IN_JSON.get(detail["type"], detail["msg"].replace(" after validation", ""))
        message = f"{dotted(loc)}: {reason}"
        problems.append(Problem(loc, None if missing else detail["input"], message))
    extra = details[0]["type"] == "extra_forbidden"
    return ApiError(
        422,
        "extra_forbidden" if extra else "invalid_parameter",
        "; ".join(dict.fromkeys(problem.message for problem in problems)),
        problems[0].loc,
        problems=problems,
    )


def _path_in(body: object, loc: Iterable[str | int], missing: bool) -> Loc:
    """Convert a pydantic location to a path in the body, without the names of union members."""
    path: list[str | int] = []
    steps = list(loc)
    for position, step in enumerate(steps):
        inside = (
            step in body
            if isinstance(body, dict)
            else isinstance(body, list) and isinstance(step, int) and step < len(body)
        )
        if inside:
            path.append(step)
            body = body[step]  # type: ignore[index]
        elif missing and position == len(steps) - 1:
            path.append(step)
    return tuple(path)
