"""Functions that a request offers, which of them must be called, and calls in a conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from server.schemas.values import Body, Flag

FunctionName = Annotated[str, Field(max_length=128, pattern="^[a-zA-Z0-9_.:/-]+$")]


class FunctionDefinition(Body):
    """A function; without ``parameters`` it has none. Arguments match regardless of ``strict``."""

    name: FunctionName
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: Flag = False


class Tool(Body):
    """A tool, which must be a function."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(Body):
    """A function by name."""

    name: str


class ToolReference(Body):
    """A tool by its function's name."""

    type: Literal["function"]
    function: FunctionReference


class AllowedTools(Body):
    """Which of the tools may be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolReference], Field(min_length=1, fail_fast=True)]


class AllowedToolsChoice(Body):
    """A choice between some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_kind(choice: Any) -> str | None:
    if isinstance(choice, str):
        return "<string>"
    kind = choice.get("type") if isinstance(choice, dict) else getattr(choice, "type", None)
    return f"<{kind}>" if isinstance(kind, str) else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")]
    | Annotated[ToolReference, Tag("<function>")]
    | Annotated[AllowedToolsChoice, Tag("<allowed_tools>")],
    Discriminator(
        _choice_kind,
        custom_error_type="invalid_tool_choice",
        custom_error_message="must be 'none', 'auto', 'required', or an object of the type 'function' "
        "or 'allowed_tools'",
    ),
]


class CalledFunction(Body):
    """A function that the assistant called. Some clients send the arguments as an object."""

    model_config = ConfigDict(extra="ignore")

    name: FunctionName
    arguments: str | dict[str, Any] = ""


class ToolCall(Body):
    """A call in an assistant message."""

    model_config = ConfigDict(extra="ignore")

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction
