"""Hyperparameters as a host sets them: some by name, over the trainer's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler, JsonValue
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from config.errors import SettingsError
from config.sources import CONFIG_FILE, variable_of
from trainer.config.hyperparameters import Hyperparameters
from trainer.config.job import check_hyperparameters
from trainer.errors import ConfigError


class _Schema:
    """Gives editors the hyperparameters' own schema: all may be left out, none other stands there."""

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(Hyperparameters.__pydantic_core_schema__)


Overrides = Annotated[dict[str, JsonValue], _Schema()]


def check_overrides(overrides: Mapping[str, JsonValue]) -> None:
    """`SettingsError` names field, value and remedy of the first that the trainer would refuse."""
    try:
        check_hyperparameters(overrides)
    except ConfigError as error:
        setting = f"training.{error.field}"
        raise SettingsError(
            f"{variable_of(setting)} ({setting} in {CONFIG_FILE}): {error.message}", remedy=error.remedy
        ) from None


def in_force(overrides: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Every hyperparameter by name."""
    return check_hyperparameters(overrides).model_dump(mode="json")
