"""Hyperparameters as a host sets them: some by name, over the trainer's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler, JsonValue, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from trainer.config.hyperparameters import Hyperparameters


class _Schema:
    """Gives editors the hyperparameters' own schema: all may be left out, none other stands there."""

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(Hyperparameters.__pydantic_core_schema__)


Overrides = Annotated[dict[str, JsonValue], _Schema()]


def in_force(overrides: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Every hyperparameter by name; as they were given, where they are not what the trainer takes."""
    try:
        return Hyperparameters.model_validate(dict(overrides)).model_dump(mode="json")
    except ValidationError:
        return {**Hyperparameters().model_dump(mode="json"), **overrides}
