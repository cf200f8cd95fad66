"""A run's numbers in words: gap, accuracy, alerts, device, preview, and how far off ETAs were."""

from __future__ import annotations

from collections.abc import Iterator

from registry.progress import DeviceReading, EtaError, Preview, QueueVelocity
from registry.records import Estimate
from registry.status_files import TrainingStatus

MAX_CHARACTERS = 120


def monitoring_lines(status: TrainingStatus) -> list[str]:
    """What is known of a job's training, and of what is not known why."""
    return [
        *_measured(status),
        *(f"ALERT {alert.kind} since step {alert.since_step}: {alert.message}" for alert in status.alerts),
        *_device(status.device),
        *(eta_error_line(error) for error in status.eta_errors),
        *_preview(status.preview, reason=status.preview_unknown_because),
        *_error(status),
    ]


def velocity_line(velocity: QueueVelocity | None, *, reason: str) -> str:
    """`Queue velocity: 4.0 jobs/h (1.3 to 9.3, n = 5), 48 000 rows/h over 1.2 h`."""
    if velocity is None:
        return f"Queue velocity: unknown ({reason})"
    low, high = velocity.jobs_per_hour_low, velocity.jobs_per_hour_high
    return (
        f"Queue velocity: {velocity.jobs_per_hour:.1f} jobs/h ({low:.1f} to {high:.1f}, "
        f"n = {velocity.num_jobs}), {velocity.rows_per_hour:,.0f} rows/h over the last {velocity.hours:.1f} h"
    )


def eta_error_line(error: EtaError) -> str:
    """`ETAs made at 50 % of a run were off by 6 % (median, n = 12); 11 of 12 intervals held the end`."""
    sign = "late" if error.median_bias >= 0 else "early"
    inside = (
        f"; {error.num_inside} of {error.num_with_interval} intervals held the end"
        if error.num_with_interval
        else ""
    )
    return (
        f"Past ETAs made at {error.share:.0%} of a run were off by {error.median_relative_error:.0%} "
        f"(median, n = {error.num_jobs}; {abs(error.median_bias):.0%} too {sign}){inside}"
    )


def _measured(status: TrainingStatus) -> Iterator[str]:
    if status.gap is None or status.validation_loss is None:
        yield f"Gap: unknown ({status.unmeasured_because})"
        return
    yield (
        f"Gap {_number(status.gap)}: {status.gap_state}; validation loss {_number(status.validation_loss)}, "
        f"n = {status.validation_loss.num_samples} rows, at step {status.measured_at_step}"
    )
    if status.accuracy is not None and status.validation_accuracy is not None:
        yield (
            f"Token accuracy {_share(status.accuracy)} on rows it has learnt, "
            f"{_share(status.validation_accuracy)} held out"
        )


def _device(reading: DeviceReading | None) -> Iterator[str]:
    if reading is None:
        return
    words = [f"Device {reading.name}:"]
    if reading.memory_used_bytes is not None and reading.memory_total_bytes is not None:
        words.append(
            f"{_gigabytes(reading.memory_used_bytes)} of {_gigabytes(reading.memory_total_bytes)} used,"
        )
    if reading.utilisation is not None:
        words.append(f"{reading.utilisation:.0%} busy,")
    if reading.temperature_celsius is not None:
        words.append(f"{reading.temperature_celsius:.0f} °C,")
    if reading.trainer_memory_bytes is not None:
        words.append(f"trainer's main memory {_gigabytes(reading.trainer_memory_bytes)}")
    reason = f" ({reading.unknown_because})" if reading.unknown_because else ""
    yield " ".join(words).rstrip(",") + reason


def _preview(preview: Preview | None, *, reason: str) -> Iterator[str]:
    if preview is None:
        yield f"Preview: unknown ({reason})"
        return
    verdict = "right" if preview.is_correct else "wrong"
    yield (
        f"Preview of {preview.checkpoint_id} (step {preview.step}, evaluated "
        f"{preview.age_seconds:.0f} s ago), {verdict}:"
    )
    yield f"  prompt  {_short(preview.prompt)}"
    yield f"  golden  {_short(preview.golden_answer)}"
    yield f"  reply   {_short(preview.reply)}"


def _error(status: TrainingStatus) -> Iterator[str]:
    error = status.error
    if error is not None:
        when = f"{error.at:%m-%d %H:%M:%S}"
        yield f"Last error ({error.kind}, attempt {error.attempt}, {when}): {error.message}"


def _number(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _share(estimate: Estimate) -> str:
    return (
        f"{estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%}, n = {estimate.num_samples} rows)"
    )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else line[:MAX_CHARACTERS] + "…"
