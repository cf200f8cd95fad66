"""Numbers of a run, as they go out: progress at intervals, the result at the end."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from trainer.clock import Clock
from trainer.core.memory import peak_memory_bytes
from trainer.core.run import Run
from trainer.core.step import StepOutcome
from trainer.messages import ChildMessage, EndState, Progress, TrainingResult

NUM_BASELINE_REPORTS = 20
NUM_RECENT_REPORTS = 5
MIN_SPEED_SHARE = 0.6
MIN_LOSSES = 20


class Reporter:
    """Reports the first step, the last, and one whenever the configured interval has passed."""

    def __init__(self, run: Run, *, emit: Callable[[ChildMessage], None], clock: Clock) -> None:
        self._run = run
        self._emit = emit
        self._clock = clock
        self._started = self._reported = clock.monotonic()
        self._first_step = run.step
        self._first_tokens = self._reported_tokens = run.num_tokens
        self._loss_sum, self._num_answers = 0.0, 0
        self._unreported: StepOutcome | None = None
        self._speeds: list[float] = []

    def after_step(self, outcome: StepOutcome) -> None:
        """Count a step, and report it if it is time."""
        self._loss_sum += outcome.loss_sum
        self._num_answers += outcome.num_answers
        self._unreported = outcome
        now = self._clock.monotonic()
        is_due = now - self._reported >= self._run.config.monitoring.report_every_seconds
        if is_due or self._run.is_done or self._run.step == self._first_step + 1:
            self._report(outcome, now=now)

    def catch_up(self) -> None:
        """Report the last step, where the interval left it out: a run that ends early tells where."""
        if self._unreported is not None:
            self._report(self._unreported, now=self._clock.monotonic())

    def result(self, state: EndState) -> TrainingResult:
        """How the run ended, at this moment."""
        run, duration = self._run, self._clock.monotonic() - self._started
        return TrainingResult(
            state=state,
            num_steps=run.plan.num_steps,
            step=run.step,
            epoch=run.step / run.plan.steps_per_epoch,
            num_tokens=run.num_tokens,
            num_unused_rows=run.num_unused_rows,
            num_dropped_rows=run.dataset.num_dropped_rows,
            num_truncated_rows=run.dataset.num_truncated_rows,
            final_checkpoint=None if run.saved is None else str(run.saved.path),
            mean_loss=run.mean_loss,
            tokens_per_second=_rate(run.num_tokens - self._first_tokens, seconds=duration),
            duration_seconds=duration,
        )

    def _report(self, outcome: StepOutcome, *, now: float) -> None:
        run = self._run
        speed = _rate(run.num_tokens - self._reported_tokens, seconds=now - self._reported)
        self._emit(
            Progress(
                step=run.step,
                num_steps=run.plan.num_steps,
                epoch=run.step / run.plan.steps_per_epoch,
                loss=self._loss_sum / self._num_answers,
                learning_rate=run.learning_rate_at(run.step),
                grad_norm=outcome.grad_norm,
                smoothed_loss=run.recent_loss,
                tokens_per_second=speed,
                average_tokens_per_second=_rate(
                    run.num_tokens - self._first_tokens, seconds=now - self._started
                ),
                alerts=(*self._speed_alerts(speed), *loss_alerts(tuple(run.recent))),
                num_tokens=run.num_tokens,
                num_unused_rows=run.num_unused_rows,
                peak_memory_bytes=peak_memory_bytes(run.device),
            )
        )
        self._unreported = None
        self._reported, self._reported_tokens = now, run.num_tokens
        self._loss_sum, self._num_answers = 0.0, 0

    def _speed_alerts(self, speed: float | None) -> tuple[str, ...]:
        """The first reports are the baseline; the very first one is left out, since it warms up."""
        if speed is not None:
            self._speeds.append(speed)
            del self._speeds[1 + NUM_BASELINE_REPORTS + NUM_RECENT_REPORTS : -NUM_RECENT_REPORTS]
        return speed_alerts(self._speeds[1:])


def speed_alerts(speeds: Sequence[float]) -> tuple[str, ...]:
    """An alert where the last reports' median speed is under 60 % of that of the first ones."""
    if len(speeds) < NUM_BASELINE_REPORTS + NUM_RECENT_REPORTS:
        return ()
    baseline = statistics.median(speeds[:NUM_BASELINE_REPORTS])
    recent = statistics.median(speeds[-NUM_RECENT_REPORTS:])
    if recent >= MIN_SPEED_SHARE * baseline:
        return ()
    return (f"{recent:.0f} tokens/s is {recent / baseline:.0%} of the {baseline:.0f} that it began with",)


def loss_alerts(steps: Sequence[tuple[float, int]]) -> tuple[str, ...]:
    """An alert where the last steps' losses, (sum, answer tokens) each, spread more than their mean."""
    losses = [loss_sum / num_answers for loss_sum, num_answers in steps]
    if len(losses) < MIN_LOSSES:
        return ()
    mean, spread = statistics.fmean(losses), statistics.stdev(losses)
    if spread <= mean:
        return ()
    return (f"the loss of the last {len(losses)} steps spreads by {spread:.3g} around {mean:.3g}",)


def _rate(count: int, *, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None
