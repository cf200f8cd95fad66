"""Whether layers are the fused ones of `trainer/core/fused_layers.py`: training and its estimate ask here."""

from __future__ import annotations


def fuses_layers(*, device: str, arithmetic: str) -> bool:
    """Where these were measured to win, and autocast changes no type between one pass and the next."""
    return device == "cpu" and arithmetic == "float32"
