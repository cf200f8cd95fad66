"""Numbers of a run, as they go out: progress at intervals, the result at the end."""

from __future__ import annotations

from collections.abc import Callable

from trainer.clock import Clock
from trainer.core.memory import peak_memory_bytes, resident_bytes
from trainer.core.run import Run
from trainer.core.step import StepOutcome
from trainer.messages import ChildMessage, EndState, Progress, TrainingResult, Warned
from trainer.monitoring.alerts import (
    AlertBook,
    Finding,
    SpeedRecord,
    gap_finding,
    not_finite_finding,
    variance_finding,
)
from trainer.monitoring.probe import Probe


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
        self._speeds, self._alerts = SpeedRecord(), AlertBook()
        self._probe = Probe(run, clock=clock, warn=lambda message: emit(Warned(message=message)))

    def after_step(self, outcome: StepOutcome) -> None:
        """Count a step, and report it if it is time."""
        self._loss_sum += outcome.loss_sum
        self._num_answers += outcome.num_answers
        self._unreported = outcome
        self._probe.after_step()
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
                alerts=self._alerts.update(self._findings(speed), step=run.step, now=self._clock.now()),
                micro_evaluation=self._probe.last,
                unmeasured_because=self._probe.unmeasured_because,
                num_tokens=run.num_tokens,
                num_unused_rows=run.num_unused_rows,
                peak_memory_bytes=peak_memory_bytes(run.device),
                resident_bytes=resident_bytes(),
            )
        )
        self._unreported = None
        self._reported, self._reported_tokens = now, run.num_tokens
        self._loss_sum, self._num_answers = 0.0, 0

    def _findings(self, speed: float | None) -> tuple[Finding | None, ...]:
        measured = self._probe.last
        return (
            self._speeds.add(speed),
            variance_finding(tuple(self._run.recent)),
            gap_finding(measured),
            not_finite_finding(measured),
        )


def _rate(count: int, *, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None
