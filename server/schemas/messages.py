"""Messages of a conversation, the same for Azure's and OpenAI's clients."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticKnownError

from server.schemas.tools import ToolCall
from server.schemas.values import Body


class TextPart(Body):
    """A text part."""

    type: Literal["text"]
    text: str


class RefusalPart(Body):
    """An assistant's refusal, which counts as its text."""

    type: Literal["refusal"]
    refusal: str


class ImageUrl(Body):
    """An image URL; ``low`` detail uses the whole image as a single crop, with fewer tokens."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Body):
    """An image part. Azure's JavaScript sample names the key ``image``."""

    type: Literal["image_url"]
    image_url: ImageUrl | None = None
    image: ImageUrl | None = None


OtherMedia = Literal["input_audio", "audio_url", "input_video", "video", "video_url", "file"]


class OtherMediaPart(BaseModel):
    """A part that other models support; this server refuses it."""

    type: OtherMedia


def _part_kind(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    if not isinstance(kind, str):
        return None
    return "<other>" if kind in get_args(OtherMedia) else f"<{kind}>"


# Tags appear in pydantic's error paths; the brackets distinguish them from keys of the body.
ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[OtherMediaPart, Tag("<other>")],
    Discriminator(
        _part_kind,
        custom_error_type="invalid_content_part",
        custom_error_message="the type of a content part must be 'text' or 'image_url'",
    ),
]


def _content_kind(content: Any) -> str | None:
    if isinstance(content, str):
        return "<string>"
    return "<parts>" if isinstance(content, list) else None


Content = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[
        list[ContentPart], Field(min_length=1, max_length=256, fail_fast=True), Tag("<parts>")
    ],
    Discriminator(
        _content_kind,
        custom_error_type="invalid_content",
        custom_error_message="content must be a string or a list of parts",
    ),
]


class ChatMessage(BaseModel):
    """A message. Additional keys, which clients copy from responses, are allowed if they are empty."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(
        None, validate_default=True, description="required except in assistant messages"
    )
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128, fail_fast=True)] | None = Field(
        None, description="earlier calls, in assistant messages"
    )
    tool_call_id: str | None = Field(
        None, description="in tool messages, the call whose result this is"
    )

    @field_validator("content")
    @classmethod
    def _assistants_may_say_nothing(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and info.data.get("role") != "assistant":
            raise PydanticKnownError("missing")
        return content
