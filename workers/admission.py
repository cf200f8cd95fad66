"""Whether this host may begin a piece of work now; if not, the reason is kept where people look."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from config.training import TrainingSettings
from inference.estimate import running_bytes
from registry import hosts, queue
from registry.errors import RegistryError
from registry.messages import EvaluationRequest
from registry.model_shapes import read_shape
from registry.queue import Seen
from registry.records import TrainingJob
from trainer.config.adapter import AdapterConfig
from trainer.config.pinned import read_pinned
from trainer.estimate import TrainingMode, smallest_training_bytes, training_bytes
from workers.context import Context
from workers.devices import CpuDevice, Device, open_device, open_devices
from workers.errors import DeviceBusy
from workers.guard import Need, holding

log = logging.getLogger(__name__)

Kind = Literal["cpu", "cuda"]

ROW_WAIT_SECONDS = 0.1  # so that bells of submissions that were refused keep no worker
ROW_POLL_SECONDS = 0.0002  # at first, then ever longer: a hundredth of the wait is the looks' own
ROW_POLL_GROWTH = 1.3


@contextmanager
def to_train(context: Context, *, rung_for: str | None = None) -> Iterator[Seen | None]:
    """Hold this host's training device for the next job and give that; None where none can begin now.

    Why it cannot stands with the host until a job begins. A job is rung before its row is written: where
    `rung_for` is not there yet and nothing else may begin, it is waited for, a tenth of a second at most.
    """
    seen = _look_until_written(context, job_id=rung_for)
    if seen is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            need, training = _training_need(context, seen), context.settings.training
            devices = open_devices(training.device, count=training.num_processes)
            _hold(context, stack, need=need, devices=devices)
        except DeviceBusy as error:
            _note(context, obstacle=f"{seen.job.id} waits: {error}", noted=seen.waits_for)
            yield None
            return
        _note(context, obstacle="", noted=seen.waits_for)
        yield seen


@contextmanager
def to_evaluate(context: Context, request: EvaluationRequest) -> Iterator[str]:
    """Hold the device that an evaluation wants; the reason where that cannot be now, else empty."""
    with ExitStack() as stack:
        try:
            need = _evaluation_need(request)
            _hold(context, stack, need=need, devices=(open_device(request.device),))
        except DeviceBusy as error:
            yield str(error)
            return
        yield ""


def training_mode(
    training: TrainingSettings, *, kind: Kind, adapter: AdapterConfig | None = None
) -> TrainingMode:
    """What the trainer's `auto` settings come to on a kind of device."""
    checkpoints, overlaps = training.gradient_checkpointing, training.overlap_writing
    return TrainingMode(
        device=kind,
        arithmetic="bfloat16" if kind == "cuda" else "float32",
        checkpoints_gradients=checkpoints == "on" or (checkpoints == "auto" and kind == "cuda"),
        # On CUDA the copy lies in the computer's memory.
        copies_state=kind == "cpu" and overlaps != "off" and training.num_processes == 1,
        cross_entropy=training.cross_entropy,
        adapter=adapter,
        num_shards=training.num_processes if training.parallel == "fsdp" else 1,
    )


def kind_of(device: str) -> Kind:
    """Of the device that a name means on this host."""
    return "cpu" if isinstance(open_device(device), CpuDevice) else "cuda"


def _look_until_written(context: Context, *, job_id: str | None) -> Seen | None:
    """What may begin; with `job_id`, looked for until its row is there or it was waited for long enough."""
    deadline, pause = time.monotonic() + ROW_WAIT_SECONDS, ROW_POLL_SECONDS
    while True:
        is_late = time.monotonic() > deadline
        seen, is_written = _look(context, job_id=job_id)
        if seen is not None or is_written or is_late:
            return seen
        time.sleep(pause)
        pause *= ROW_POLL_GROWTH


def _look(context: Context, *, job_id: str | None) -> tuple[Seen | None, bool]:
    settings = context.settings
    with context.registry.reading() as tx:
        seen = queue.look(tx, queues=settings.training.queues, host=context.host, rules=settings.queue)
        return seen, seen is not None or job_id is None or tx.seek(TrainingJob, job_id) is not None


def _training_need(context: Context, seen: Seen) -> Need:
    job = seen.job
    try:
        # Where there is nothing to start from the run itself fails and says why.
        shape = read_shape(Path() if seen.sources is None else Path(seen.sources.parent.path))
    except RegistryError as error:
        log.warning("%s: its memory is not estimated: %s", job.id, error)
        return Need(role="training", subject=job.id, num_bytes=0, least_bytes=0)
    hyperparameters, training = read_pinned(job.hyperparameters).hyperparameters, context.settings.training
    # Several processes take a share of each batch: each on a card of its own, or all on one CPU.
    tokens = max(1, hyperparameters.tokens_per_batch // training.num_processes)
    mode = training_mode(training, kind=kind_of(training.device), adapter=hyperparameters.adapter)
    num_here = training.num_processes if mode.device == "cpu" else 1
    return Need(
        role="training",
        subject=job.id,
        num_bytes=num_here * training_bytes(shape, tokens_per_batch=tokens, mode=mode),
        least_bytes=num_here * smallest_training_bytes(shape, mode=mode),
    )


def _evaluation_need(request: EvaluationRequest) -> Need:
    try:
        num_bytes = running_bytes(read_shape(Path(request.model.path)))
    except RegistryError:
        num_bytes = 0  # the evaluation itself fails and says why
    return Need(role="evaluation", subject=request.checkpoint_id, num_bytes=num_bytes, least_bytes=num_bytes)


def _hold(context: Context, stack: ExitStack, *, need: Need, devices: tuple[Device, ...]) -> None:
    """All of them, in the same order in every process, so that no two wait for each other."""
    for device in devices:
        stack.enter_context(
            holding(
                device,
                directory=context.settings.paths.run / "devices",
                need=need,
                rules=context.settings.guard,
                clock=context.registry.clock,
            )
        )


def _note(context: Context, *, obstacle: str, noted: str) -> None:
    if obstacle == noted:
        return
    with context.registry.transaction() as tx:
        hosts.note_obstacle(tx, name=context.host, obstacle=obstacle, actor=context.actor)
