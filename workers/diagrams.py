"""Draws reliability diagrams: how often answers are right, over the confidence they were given with.

matplotlib is wanted for it (the extra `diagrams`): it writes the same figure as SVG and as PNG and brings its
own fonts, which a host without a screen lacks. It is loaded when the first diagram is drawn; where it is not
installed, none is.
"""

from __future__ import annotations

import logging
from io import BytesIO
from pathlib import Path
from typing import Any

from registry.calibrations import Calibration, Reliability
from registry.files import write_atomically

log = logging.getLogger(__name__)

FORMATS = ("svg", "png")
SIZE_INCHES = (6.0, 5.0)
DPI = 120
OWN_COLOUR, MAPPED_COLOUR, COUNT_COLOUR = "#1f5a96", "#b5541c", "#d5dbe3"


def paths(checkpoint_id: str, *, directory: Path) -> dict[str, Path]:
    """Where a checkpoint's diagram lies, by format."""
    return {kind: directory / f"{checkpoint_id}.{kind}" for kind in FORMATS}


def draw(calibration: Calibration, *, directory: Path) -> list[Path]:
    """Write the diagram in every format; what was written. Nothing where there is nothing known to draw.

    A file is whole or absent, and the same calibration gives the same bytes of SVG.
    """
    if calibration.before is None or calibration.after is None:
        return []
    written = []
    for kind, content in _rendered(calibration, before=calibration.before, after=calibration.after).items():
        path = paths(calibration.checkpoint_id, directory=directory)[kind]
        write_atomically(path, content=content, is_durable=False)
        written.append(path)
    return written


def _rendered(calibration: Calibration, *, before: Reliability, after: Reliability) -> dict[str, bytes]:
    try:
        import matplotlib as mpl  # an extra
        from matplotlib.figure import Figure  # not pyplot: it would look for a screen and keep every figure
    except ImportError:
        log.warning("no reliability diagram is drawn: matplotlib is not installed")
        return {}
    contents = {kind: BytesIO() for kind in FORMATS}
    with mpl.rc_context({"svg.hashsalt": calibration.id, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        _draw_on(figure.subplots(), calibration=calibration, before=before, after=after)
        for kind, content in contents.items():
            dated = {"Date": None} if kind == "svg" else None
            figure.savefig(content, format=kind, dpi=DPI, metadata=dated)
    return {kind: content.getvalue() for kind, content in contents.items()}


def _draw_on(axes: Any, *, calibration: Calibration, before: Reliability, after: Reliability) -> None:
    _counts(axes.twinx(), reliability=before)
    axes.set_zorder(2)
    axes.patch.set_visible(False)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="as sure as right")
    _curve(axes, before, label="the model's own confidence", colour=OWN_COLOUR)
    if calibration.map is not None and after != before:
        _curve(axes, after, label=f"with the {calibration.map.kind} map", colour=MAPPED_COLOUR)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of right answers")
    axes.set_title(f"{calibration.checkpoint_id}, {calibration.num_held_out} held-out rows", fontsize=10)
    axes.legend(loc="upper left", fontsize=8)


def _curve(axes: Any, reliability: Reliability, *, label: str, colour: str) -> None:
    """Each bin's accuracy at its mean confidence, with its Wilson interval; empty bins are left out."""
    points = [(one.mean_confidence, one.accuracy) for one in reliability.bins if one.accuracy is not None]
    ece = reliability.ece
    axes.errorbar(
        [confidence for confidence, _ in points],
        [accuracy.value for _, accuracy in points],
        yerr=[
            [accuracy.value - accuracy.low for _, accuracy in points],
            [accuracy.high - accuracy.value for _, accuracy in points],
        ],
        color=colour,
        marker="o",
        capsize=3,
        label=f"{label}: ECE {ece.value:.3f} ({ece.low:.3f} to {ece.high:.3f})",
    )


def _counts(axes: Any, *, reliability: Reliability) -> None:
    """How many answers each bin holds, behind the curves."""
    for one in reliability.bins:
        axes.bar(one.low, one.num_examples, width=one.high - one.low, align="edge", color=COUNT_COLOUR)
    axes.set_ylabel("answers in the bin", color="grey")
