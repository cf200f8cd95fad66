"""The demo's live view: queue, training, accuracy by difficulty, verdicts, what is served."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from registry import lineage, queue
from registry.records import Event
from registry.store import Registry
from tasks.cli.output import checkpoints_table, jobs_table
from tasks.demo.questions import Reply
from workers.stack.supervisor import Supervisor
from workers.status import checkpoint_lines, job_line, recent_jobs

SHOWN_KINDS = ("TrainingJob", "Checkpoint", "Deployment")
NUM_EVENTS = 6
MAX_EVENT_LETTERS = 130


class DemoView:
    """Redraws on a terminal; elsewhere prints each event once, as a line."""

    def __init__(self, registry: Registry, *, supervisor: Supervisor, console: Console) -> None:
        self._registry = registry
        self._supervisor = supervisor
        self._console = console
        self._started = time.monotonic()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._last_event_id = 0
        self._step = ""

    def __enter__(self) -> DemoView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def elapsed_seconds(self) -> float:
        """Since the view was made."""
        return time.monotonic() - self._started

    def say(self, step: str) -> None:
        """Name what the demo does next."""
        self._step = step
        if self._live is None:
            self._console.print(f"[{self.elapsed_seconds:5.0f} s] {step}", markup=False)
        self.refresh()

    def refresh(self) -> None:
        """Show the present state."""
        if self._live is None:
            self._print_fresh_events()
            return
        self._live.update(self._draw(), refresh=True)

    def _draw(self) -> RenderableType:
        head = Text(f"tandem demo  {self.elapsed_seconds:4.0f} s   {self._step}", style="bold")
        parts = Text("  ").join(
            _part(name, state=part.state) for name, part in self._supervisor.running.items()
        )
        if not self._registry_is_ready():
            return Panel(Group(head, parts))
        with self._registry.reading() as tx:
            jobs = [job_line(job, now=tx.now) for job in recent_jobs(tx)]
            waiting = [job.name for job in queue.waiting(tx)]
            lines = checkpoint_lines(tx)
            active = lineage.active_deployment(tx)
            events = tx.find(Event, kind=SHOWN_KINDS, newest_first="id", limit=NUM_EVENTS)
        served = f"Served: {active.id} ({active.checkpoint_id})" if active else "Served: nothing yet"
        queued = "Queue: " + (" → ".join(waiting) or "empty")
        return Panel(
            Group(
                head,
                parts,
                queued,
                jobs_table(jobs),
                checkpoints_table(lines),
                served,
                _event_lines(events[::-1]),
            )
        )

    def _print_fresh_events(self) -> None:
        if not self._registry_is_ready():
            return
        with self._registry.reading() as tx:
            newest = tx.find(Event, kind=SHOWN_KINDS, newest_first="id", limit=50)[::-1]
        for event in newest:
            if (event.id or 0) > self._last_event_id:
                self._last_event_id = event.id or 0
                self._console.print(
                    f"[{self.elapsed_seconds:5.0f} s]   {_event_line(event)}", markup=False, highlight=False
                )

    def _registry_is_ready(self) -> bool:
        return self._supervisor.running["control"].state == "up"


def replies_table(before: Sequence[Reply], *, after: Sequence[Reply]) -> Table:
    """Five held-out words before and after training."""
    table = Table(title="The served model, asked over HTTP", title_justify="left")
    for heading in ("word", "expected", "before training", "after training"):
        table.add_column(heading)
    for first, last in zip(before, after, strict=True):
        table.add_row(first.word, first.expected, _reply(first), _reply(last))
    return table


def _reply(reply: Reply) -> Text:
    mark = "✓" if reply.is_right else "✗"
    return Text(f"{mark} {' '.join(reply.answer.split())[:24]}", style="green" if reply.is_right else "red")


def _part(name: str, *, state: str) -> Text:
    styles = {"up": "green", "restarting": "red", "waiting": "dim"}
    return Text(f"● {name}", style=styles.get(state, "yellow"))


def _event_lines(events: Sequence[Event]) -> Text:
    return Text(
        "\n".join(_event_line(event) for event in events), style="dim", overflow="ellipsis", no_wrap=True
    )


def _event_line(event: Event) -> str:
    return f"{event.subject_id} {event.after}: {event.reason}"[:MAX_EVENT_LETTERS]
