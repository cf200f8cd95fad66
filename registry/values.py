"""What every record is, and the number that carries its interval. `registry.records` gives both as well."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """Frozen, closed to unknown fields, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def changed(self, **changes: Any) -> Self:
        """A validated copy with these fields replaced."""
        return type(self).model_validate(self.model_dump() | changes)


class Estimate(Record):
    """A number that carries its sample size and 95 % interval."""

    value: float
    low: float
    high: float
    num_samples: int = Field(ge=1)
