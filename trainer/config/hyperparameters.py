"""The settings that a submission may override: how the model learns."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator
from pydantic_core import PydanticCustomError

from registry.records import Record
from trainer.config.adapter import AdapterConfig

# The bounds of packed rows are counted in 32 bits.
MAX_TOKENS = (1 << 31) - 1

Schedule = Literal["linear", "cosine", "constant"]


class Hyperparameters(Record):
    """How the model learns. The defaults are safe for full fine-tuning of 0.6B parameters."""

    learning_rate: float = Field(default=1e-5, gt=0, le=1, description="peak, reached after the warm-up")
    schedule: Schedule = Field(default="linear", description="from the peak to 0 at the last step")
    warmup_steps: int = Field(default=20, ge=0, description="at most half of all steps are used")
    num_epochs: int = Field(default=1, ge=1, le=1000)
    max_steps: int | None = Field(default=None, ge=1, description="end sooner than num_epochs would")
    tokens_per_batch: int = Field(
        default=8192,
        ge=1,
        le=MAX_TOKENS,
        description="rows times the longest of them; a longer row is a batch of its own",
    )
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="not on norms, biases, embeddings")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0, le=1)
    adapter: AdapterConfig | None = Field(
        default=None, description='full fine-tuning if left out; "lora", or {"kind": "lora", "rank": 16, ...}'
    )
    seed: int = Field(default=0, ge=0, lt=1 << 32)

    def as_json(self) -> dict[str, JsonValue]:
        """Every value by name; `adapter` only where there is one, so that older jobs still agree."""
        values: dict[str, JsonValue] = self.model_dump(mode="json")
        return {name: value for name, value in values.items() if name != "adapter" or value is not None}

    @field_validator("adapter", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: Any) -> Any:
        """Refuse `true` where pydantic would read the number 1."""
        if isinstance(value, bool):
            raise PydanticCustomError("boolean", "a number or a word is needed here, not true or false")
        return value
