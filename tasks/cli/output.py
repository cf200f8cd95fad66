"""What the command line prints: one line of JSON for programs, tables and sentences for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from registry.records import Estimate
from registry.status_files import (
    CheckpointStatus,
    Forecast,
    JobStatus,
    PartStatus,
    SystemStatus,
    TrainingStatus,
)
from tasks.cli.monitoring import velocity_line

STATE_STYLES = {
    "up": "green",
    "accepted": "green",
    "succeeded": "green",
    "pass": "green",
    "training": "green",
    "down": "red",
    "crashed": "red",
    "failed": "red",
    "rejected": "red",
    "quarantined": "red",
    "regressed": "red",
    "unknown": "yellow",
    "watch": "yellow",
}

DAY_SECONDS = 86400.0

# Wide where nobody looks at it: a file or a pipe has no right edge.
console = Console(width=None if sys.stdout.isatty() else 160)
error_console = Console(stderr=True, soft_wrap=True)


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    """Strict JSON on standard output."""
    plain: Any
    if isinstance(value, BaseModel):
        plain = value.model_dump(mode="json")
    elif isinstance(value, dict):
        plain = value
    else:
        plain = [item.model_dump(mode="json") for item in value]
    console.file.write(json.dumps(plain, allow_nan=False, ensure_ascii=False) + "\n")


def styled(state: str | None) -> str:
    """A state in its colour; a dash where there is none."""
    if state is None:
        return "–"
    style = STATE_STYLES.get(state)
    return f"[{style}]{state}[/]" if style else state


def percent(estimate: Estimate | None) -> str:
    """`94 % [88-97]`; a dash where it is unknown."""
    if estimate is None:
        return "–"
    return f"{estimate.value:.0%} [{max(0, estimate.low) * 100:.0f}-{min(1, estimate.high) * 100:.0f}]"


def number(value: float | None, *, digits: int = 3) -> str:
    """A number, or a dash where it is unknown."""
    return "–" if value is None else f"{value:.{digits}f}"


def parts_table(parts: Sequence[PartStatus]) -> Table:
    """Who is up."""
    table = Table(title="Parts", title_justify="left", expand=False)
    for heading in ("part", "state", "detail"):
        table.add_column(heading, overflow="fold")
    for part in parts:
        table.add_row(part.name, styled(part.state), escape(part.detail))
    return table


def jobs_table(jobs: Sequence[JobStatus]) -> Table:
    """Jobs in order of submission."""
    table = Table(title="Jobs", title_justify="left")
    for heading in ("job", "file", "queue", "state", "step", "loss", "tokens/s", "reason"):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        step = "–" if job.step is None else f"{job.step}/{job.num_steps}"
        speed = number(job.tokens_per_second, digits=0)
        table.add_row(
            job.id,
            escape(job.name),
            job.priority,
            styled(job.state),
            step,
            number(job.loss),
            speed,
            escape(job.reason),
        )
    return table


def queue_table(jobs: Sequence[JobStatus]) -> Table:
    """What runs, then what waits, first to last, with the expected end or start (UTC)."""
    table = Table(title="Queue", title_justify="left")
    for heading in ("place", "job", "file", "queue", "state", "step", "begins", "ends", "reason"):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        waits = job.place is not None
        table.add_row(
            str(job.place) if waits else "–",
            job.id,
            escape(job.name),
            job.priority,
            styled(job.state),
            "–" if job.step is None else f"{job.step}/{job.num_steps}",
            moment(job.start) if waits else "–",
            "–" if waits else moment(job.eta),
            escape(job.reason or (job.start_unknown_because if waits else "")),
        )
    return table


def moment(expected: Forecast | None) -> str:
    """`14:05 [14:01-14:12]`, with the day where it is not within the next one; `unknown` is a word."""
    if expected is None:
        return "unknown"
    form = "%H:%M" if expected.seconds < DAY_SECONDS else "%m-%d %H:%M"
    if expected.low_seconds is None or expected.high_seconds is None:
        return f"{expected.at:{form}} (error unknown)"
    begin = expected.at - timedelta(seconds=expected.seconds)
    low, high = (begin + timedelta(seconds=side) for side in (expected.low_seconds, expected.high_seconds))
    form_high = form if expected.high_seconds < DAY_SECONDS else "%m-%d %H:%M"
    return f"{expected.at:{form}} ({low:{form}} to {high:{form_high}})"


def checkpoints_table(checkpoints: Sequence[CheckpointStatus], *, title: str = "Checkpoints") -> Table:
    """Checkpoints with loss, accuracy by difficulty and 95 % intervals, verdict, rank."""
    levels = _levels(checkpoints)
    table = Table(title=title, title_justify="left")
    for heading in (
        "rank",
        "checkpoint",
        "loss",
        "accuracy",
        *map(escape, levels),
        "verdict",
        "state",
        "served",
    ):
        table.add_column(heading)
    for line in checkpoints:
        loss = "–" if line.loss is None else f"{line.loss.value:.3f}"
        table.add_row(
            "–" if line.rank is None else str(line.rank),
            line.id,
            loss,
            percent(line.accuracy),
            *(percent(line.accuracy_by_difficulty.get(level)) for level in levels),
            styled(line.verdict),
            styled(line.state),
            "●" if line.is_served else "",
        )
    return table


def print_status(status: SystemStatus) -> None:
    """The whole status, for a person."""
    console.print(parts_table(status.parts))
    training = status.training
    console.print(_training_line(training, now=status.written_at))
    for alert in training.alerts:
        console.print(f"  [yellow]alert[/] {alert.kind}: {escape(alert.message)}")
    reason = training.queue_velocity_unknown_because
    console.print(velocity_line(training.queue_velocity, reason=reason), markup=False, highlight=False)
    for line in status.queues:
        messages = "unknown" if line.num_messages is None else str(line.num_messages)
        first = f", the first begins {moment(line.first_jobs[0].start)}" if line.first_jobs else ""
        console.print(f"Queue {line.name}: {line.num_waiting} waiting, {messages} bells{first}")
    if status.jobs:
        console.print(jobs_table(status.jobs))
    if status.checkpoints:
        console.print(checkpoints_table(status.checkpoints))
    served = status.served
    agreement = {True: "the server agrees", False: "the server differs", None: "the server does not say"}
    said = f"{agreement[served.agrees]}: {served.reported_by_server or 'no release'}"
    console.print(f"Served: {served.release_id or 'nothing'} ({served.checkpoint_id or '–'}); {said}")
    console.print(f"As of {status.written_at:%Y-%m-%d %H:%M:%S} UTC, home {escape(status.home)}")


def _training_line(training: TrainingStatus, *, now: datetime) -> str:
    words = [f"Training: {styled(training.status)}", escape(training.name or ""), escape(training.reason)]
    if training.step is not None:
        words.append(f"step {training.step}/{training.total_steps}, loss {number(training.loss)}")
    if training.gap is not None:
        words.append(f"gap {training.gap.value:.2f} ({training.gap_state})")
    if training.reported_at is not None:
        words.append(f"(reported {max(0.0, (now - training.reported_at).total_seconds()):.0f} s ago)")
    return " ".join(word for word in words if word)


def _levels(checkpoints: Sequence[CheckpointStatus]) -> list[str]:
    order = {"easy": 0, "medium": 1, "hard": 2}
    found = {level for line in checkpoints for level in line.accuracy_by_difficulty}
    return sorted(found, key=lambda level: (order.get(level, 3), level))
