"""A verdict and an accuracy report as a person reads them: reasons, slices, drift, power, what flipped."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from intelligence.regression import SMALLEST_P
from registry.records import Estimate, Verdict
from registry.reports import AccuracyChange, AccuracyReport
from registry.states import Outcome
from tasks.cli.output import console, percent, styled

MAX_ROW_IDS = 20
ORDER = (Outcome.REGRESSED, Outcome.WATCH, Outcome.PASS, Outcome.UNKNOWN)


def print_verdict(verdict: Verdict) -> None:
    """The outcome with its reasons, then slices, drift and what the comparison could find."""
    console.print(f"{styled(verdict.outcome)} against {verdict.baseline_checkpoint_id or '–'}:")
    for reason in verdict.reasons:
        console.print(f"  {reason}", markup=False)
    if verdict.power is not None:
        console.print(f"  {_power(verdict)}", markup=False)
    drift = verdict.drift
    if drift is not None:
        loss, accuracy = _signed(drift.loss_increase), _points(drift.accuracy_change)
        console.print(
            f"  Drift since the first anchor {drift.checkpoint_id}: {styled(drift.outcome)}, loss {loss}, "
            f"accuracy {accuracy} (n = {drift.num_pairs})"
        )
    if verdict.slices:
        console.print(_slices_table(verdict))


def print_report(report: AccuracyReport) -> None:
    """Accuracy by difficulty beside the baseline's, and the rows that flipped."""
    against = f" against {report.baseline_checkpoint_id}" if report.baseline_checkpoint_id else ""
    level = f", {report.level}" if report.level else ""
    console.print(f"Automated testing{against}{level}:", markup=False)
    for reason in report.reasons:
        console.print(f"  {reason}", markup=False)
    if report.total is not None:
        console.print(_accuracy_table([report.total, *report.levels]))
    for name, row_ids in (("gained", report.gained_row_ids), ("lost", report.lost_row_ids)):
        if row_ids:
            console.print(f"  {len(row_ids)} rows {name}: {_some(row_ids)}", markup=False)


def _power(verdict: Verdict) -> str:
    power = verdict.power
    if power is None:
        return ""
    shared = f" in {power.num_clusters} clusters" if power.num_clusters != verdict.num_pairs else ""
    found = (
        f"An increase of {power.detectable_increase:.1%} of the loss is found with 80 % power "
        f"(n = {verdict.num_pairs}{shared})"
    )
    if power.suffices:
        return f"{found}: n suffices for the limit."
    return f"{found}: too few for the limit, about {power.num_pairs_needed} are needed."


def _slices_table(verdict: Verdict) -> Table:
    small = f", {verdict.num_small_slices} too small to be judged" if verdict.num_small_slices else ""
    title = f"Slices (p adjusted by Holm over {len(verdict.slices)}{small})"
    table = Table(title=title, title_justify="left")
    for heading in ("slice", "n", "loss", "p", "accuracy", "p", "verdict"):
        table.add_column(heading)
    for one in sorted(verdict.slices, key=lambda one: (ORDER.index(one.outcome), one.kind, one.name)):
        table.add_row(
            escape(f"{one.kind} {one.name}"),
            str(one.num_pairs),
            _signed(one.loss_increase),
            _p(one.p_loss),
            _points(one.accuracy_change),
            _p(one.p_accuracy),
            styled(one.outcome),
        )
    return table


def _accuracy_table(changes: Sequence[AccuracyChange]) -> Table:
    table = Table(title="Accuracy", title_justify="left")
    for heading in ("rows", "n", "accuracy", "baseline", "change in points", "McNemar p", "alert"):
        table.add_column(heading)
    for one in changes:
        table.add_row(
            escape(one.name),
            str(one.accuracy.num_samples),
            percent(one.accuracy),
            percent(one.baseline),
            _points(one.change),
            "–" if one.p_value is None else f"{one.p_value:.2g}",
            one.level or "",
        )
    return table


def _p(value: float) -> str:
    return f"<{SMALLEST_P:g}" if value < SMALLEST_P else f"{value:.2g}"


def _signed(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:+.1%} ({estimate.low:+.1%} to {estimate.high:+.1%})"


def _points(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    value, low, high = (100 * number for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _some(row_ids: Sequence[str]) -> str:
    rest = len(row_ids) - MAX_ROW_IDS
    return ", ".join(row_ids[:MAX_ROW_IDS]) + (f" and {rest} more (--json has all)" if rest > 0 else "")
