"""Types shared by request bodies: objects, numbers that may be strings, and flags."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    Strict,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

NUMBER = r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?"


class Body(BaseModel):
    """An object in a request. Undeclared fields are refused, unless the caller allows them; null means absent.

    The JSON schema reflects this, and that numbers may be strings: ``{"type": "number"}`` becomes
    ``{"anyOf": [{"type": "number"}, {"type": "string", "pattern": ...}, {"type": "null"}]}``.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: item for name, item in value.items() if item is not None}
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema.pop("additionalProperties", None)  # it depends on the route
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            kinds = field.pop("anyOf", None) or [field]
            if any(kind.get("type") in ("number", "integer") for kind in kinds):
                kinds = [*kinds, {"type": "string", "pattern": f"^{NUMBER}$"}]
            if name not in required and {"type": "null"} not in kinds and field:
                kinds = [*kinds, {"type": "null"}]
            if len(kinds) > 1:
                about = {
                    key: field[key] for key in ("title", "description", "default") if key in field
                }
                kinds = [{k: v for k, v in kind.items() if k not in about} for kind in kinds]
                schema["properties"][name] = {**about, "anyOf": kinds}
        return schema


def _number(value: Any) -> Any:
    """Refuse booleans, which are numbers in Python, and strings that are not JSON numbers."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, not a boolean")
    if isinstance(value, str) and not re.fullmatch(NUMBER, value):
        raise PydanticCustomError("number_type", "Input should be a valid number")
    return value


IsNumber = BeforeValidator(
    _number
)  # must be the last annotation, or the JSON schema lacks the bounds
Integer = Annotated[int, IsNumber]
Number = Annotated[float, IsNumber]
Count = Annotated[int, Field(ge=1), IsNumber]
Flag = Annotated[bool, Strict()]
