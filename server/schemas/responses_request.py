"""The body of ``POST /v1/responses``, OpenAI's Responses API.

``server.responses.parse`` refuses what is declared here but not supported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, WithJsonSchema

from server.schemas.requests import EXTRAS
from server.schemas.responses_items import Input
from server.schemas.tools import FunctionName
from server.schemas.values import Body, Count, Flag, IsNumber, Number

# JSON schemas for unsupported parameters; all other values are refused.
NULL = WithJsonSchema({"type": "null"})
NOTHING = WithJsonSchema({"type": "array", "maxItems": 0})

Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
LOGPROBS: Includable = "message.output_text.logprobs"


class TextFormat(Body):
    """The format of the answer; ``name`` to ``strict`` are for ``json_schema``."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: Flag | None = None


class TextOptions(Body):
    """Options of the answer's text."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] = Field(
        "medium", description="only medium is supported"
    )


class Reasoning(Body):
    """Options of reasoning models, which this one is not."""

    effort: Any = Field(None, description="only null and none are supported")
    # Accepted without effect.
    context: Any = None
    generate_summary: Any = None
    mode: Any = None
    summary: Any = None


class ResponseStreamOptions(Body):
    """Options of streams."""

    include_obfuscation: Flag = False


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag | None = None


class HostedTool(BaseModel):
    """A tool that OpenAI runs; this server refuses it."""

    type: str


def _tool_kind(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "<function>" if kind == "function" else "<hosted>"


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")] | Annotated[HostedTool, Tag("<hosted>")],
    Discriminator(_tool_kind),
]


class NamedTool(Body):
    """The choice of one function."""

    type: Literal["function"]
    name: str


class AllowedTools(Body):
    """The choice of several functions."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(fail_fast=True)


def _choice_kind(choice: Any) -> str | None:
    if isinstance(choice, str):
        return "<mode>"
    kind = choice.get("type") if isinstance(choice, dict) else getattr(choice, "type", None)
    return f"<{kind}>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedTool, Tag("<function>")]
    | Annotated[AllowedTools, Tag("<allowed_tools>")],
    Discriminator(
        _choice_kind,
        custom_error_type="invalid_tool_choice",
        custom_error_message="must be 'none', 'auto', 'required', or an object of the type 'function' "
        "or 'allowed_tools'",
    ),
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]
Label = Annotated[str, Field(max_length=1024)]
Passed = Annotated[Any, Field(description="as in chat completions")]


class ResponsesRequest(Body):
    """The body of a request for a response.

    Lists are validated up to the first error, so that long invalid ones do not produce a million errors.
    """

    input: Input = Field([], description="may be missing with previous_response_id")
    model: str | None = Field(None, description="ignored: the server has one model")
    instructions: str | None = Field(
        None, description="a system message, for this response only, in front of the conversation"
    )
    previous_response_id: Label | None = Field(
        None, description="continues the conversation of a stored response"
    )
    store: Flag = Field(True, description="keep the response in memory, for a limited time")
    max_output_tokens: Count | None = Field(
        None, description="clamped to the context window; by default the rest of it, up to a limit"
    )
    temperature: Number = Field(1.0, ge=0, le=2)
    top_p: Number = Field(1.0, ge=0, le=1)
    top_logprobs: Annotated[int, Field(ge=0, le=20), IsNumber] = Field(
        0, description=f"alternatives per token; no effect without {LOGPROBS} in include"
    )
    include: list[Includable] = Field([], max_length=16, fail_fast=True)
    text: TextOptions | None = None
    stream: Flag = False
    stream_options: ResponseStreamOptions | None = None
    metadata: Metadata = Field({}, description="returned with the response")
    tools: list[Tool] = Field([], fail_fast=True)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: Flag = True
    # Accepted without effect.
    max_tool_calls: Count | None = Field(None, description="counts calls of hosted tools only")
    prompt_cache_key: Label | None = Field(None, description="no effect: caches work by content")
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Label | None = None
    service_tier: Label | None = None
    user: Label | None = None
    # Not supported.
    background: Flag = Field(False, description="only false is supported")
    context_management: Annotated[Any, NOTHING] = None
    conversation: Annotated[Any, NULL] = None
    moderation: Annotated[Any, NULL] = None
    prompt: Annotated[Any, NULL] = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] = Field(
        "disabled", description="only disabled is supported"
    )
    # Parameters of chat completions that OpenAI's Responses API lacks.
    presence_penalty: Passed = None
    frequency_penalty: Passed = None
    seed: Passed = None
    stop: Passed = None
    logit_bias: Passed = None
    top_k: Passed = None
    min_p: Passed = None
    repetition_penalty: Passed = None
    ignore_eos: Passed = None
    min_tokens: Passed = None
    stop_token_ids: Passed = None
    structured_outputs: Passed = None
    guided_json: Passed = None
    guided_regex: Passed = None
    guided_choice: Passed = None
    guided_grammar: Passed = None
    cache_salt: Passed = None
    skip_special_tokens: Passed = None
    num_crops: Passed = None
    mm_processor_kwargs: Passed = None
    truncate_prompt_tokens: Passed = None
    priority: Passed = None
    chat_template_kwargs: Passed = None


# Parameters that chat completions have under the same name.
SHARED = {
    *("temperature", "top_p", "stream", "parallel_tool_calls"),
    *("user", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("presence_penalty", "frequency_penalty", "seed", "stop", "logit_bias"),
    *EXTRAS,
}
