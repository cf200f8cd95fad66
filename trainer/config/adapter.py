"""Low-rank adapters as an option: which layers learn, and how much room they have to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from registry.records import Record


class AdapterConfig(Record):
    """LoRA (Hu et al. 2021): a layer's weight W stays and learns alpha / rank * B A beside it."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1, le=1024, description="columns of B, rows of A")
    alpha: float = Field(default=32.0, gt=0, description="what is learnt is multiplied by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of what goes into A")
    target_modules: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description='linear layers by name, such as ["q_proj", "v_proj"]; all but the output if left out',
    )
