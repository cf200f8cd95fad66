"""The engine: one job in, verified checkpoints out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from registry.errors import DatasetError
from registry.ids import new_id
from trainer.clock import Clock, SystemClock
from trainer.config.hyperparameters import Hyperparameters
from trainer.config.job import JobConfig
from trainer.config.locked import check_locked
from trainer.config.pinned import profile_named
from trainer.control import Control, FlagControl, Request
from trainer.core.adapters import add_adapter
from trainer.core.batching import BatchPlan
from trainer.core.chat import ChatEncoder
from trainer.core.checkpoints import Checkpoint, latest_valid, prepare_directory
from trainer.core.cross_entropy import check_available
from trainer.core.data import TokenizedDataset, tokenize_file
from trainer.core.exchange import Exchange, exchange_for, is_sharded
from trainer.core.fused_layers import fuse_layers, suits_fused_layers
from trainer.core.loss import collate
from trainer.core.memory import named_out_of_memory
from trainer.core.models import (
    check_causal,
    check_positions,
    check_projection,
    checkpoint_gradients,
    identify_model,
    load_model,
    load_tokenizer,
)
from trainer.core.optimizer import make_optimizer
from trainer.core.packed_attention import use_packed_attention, wants_packing
from trainer.core.parallel import ALONE, Team, joined
from trainer.core.report import Reporter
from trainer.core.run import Run, run_digest
from trainer.core.runtime import (
    choose_device,
    choose_dtype,
    overlaps_writing,
    reproducible,
    wants_gradient_checkpointing,
)
from trainer.core.saver import Saver
from trainer.core.step import StepRunner
from trainer.core.token_cache import TokenCache
from trainer.core.trace import RowTrace
from trainer.errors import ConfigError, DataError
from trainer.messages import (
    CheckpointSaved,
    ChildMessage,
    EndState,
    Finished,
    Started,
    TrainingResult,
    Warned,
)
from trainer.monitoring.tracking import tracking

Emit = Callable[[ChildMessage], None]

REQUESTS: tuple[Request | None, ...] = (None, "stop", "pause")
END_STATES: dict[Request, EndState] = {"stop": "stopped", "pause": "paused"}


class TrainerEngine:
    """Trains one job at a time.

    The loop is our own, not Hugging Face's Trainer, for three things that its callbacks cannot give: a step
    that ran out of memory is taken again in smaller parts with the same gradient; a run that was cut off
    goes on bit for bit, since batch and learning rate are pure functions of the step number; and a command
    takes effect at the next step boundary. It is also faster: benchmarks/trainer.py measures both.

    `emit` receives every message, `control` is asked once a step, `clock` tells the time.
    """

    def __init__(self, *, emit: Emit, control: Control | None = None, clock: Clock | None = None) -> None:
        self._emit = emit
        self._control = control or FlagControl()
        self._clock = clock or SystemClock()
        self._team = ALONE

    def run_job(self, config: JobConfig) -> TrainingResult:
        """Train a job to its end, or until control asks otherwise.

        Emits `Started`, `Progress`, `CheckpointSaved`, `Warned` and `Finished`; its result is also returned.
        Raises a `TrainerError` for what ends a run badly; the checkpoints saved before stay valid.
        """
        chosen = choose_device(config.environment.device)
        with joined(config.environment.parallel, device=chosen) as (self._team, device):
            with (
                reproducible(
                    device=device,
                    num_threads=config.environment.num_threads,
                    # Each process draws numbers of its own for its own rows.
                    seed=config.hyperparameters.seed + self._team.rank,
                ),
                named_out_of_memory("Memory ran out outside of a training step."),
                self._tracked(config),
            ):
                run = self._prepare(config, device=device)
                result = self._train(run)
            self._tell(Finished(result=result))
        return result

    @contextmanager
    def _tracked(self, config: JobConfig) -> Iterator[None]:
        """Inside this block messages also go to the tools that the job names."""
        if not self._team.is_first:
            yield
            return
        emit = self._emit
        try:
            with tracking(config, emit=emit) as self._emit:
                yield
        finally:
            self._emit = emit

    def _prepare(self, config: JobConfig, *, device: torch.device) -> Run:
        team = self._team
        inputs = _read_inputs(config, device=device, warn=self._warn, team=team)
        found = team.from_first(lambda: self._find_checkpoint(config, digest=inputs.digest))
        # Where adapters learn, a checkpoint's weights are merged: the parent's own are needed.
        is_adapted = config.hyperparameters.adapter is not None
        source = config.model.path if found is None or is_adapted else found.path
        # Sharding moves a model to its device layer by layer: one that does not fit there whole will do.
        home = torch.device("cpu") if is_sharded(config.environment.parallel, team=team) else device
        model = load_model(source, device=home, tokenizer=inputs.tokenizer)
        place = _Place(device=device, home=home, team=team)
        run = _make_run(config, inputs=inputs, model=model, place=place, warn=self._warn)
        if found is not None:
            run.restore(found)
        if config.monitoring.record_rows and team.is_first:
            run.trace = RowTrace(
                config.output.checkpoints_dir, attempt=new_id("attempt"), resumed_from_step=run.step
            )
        self._tell(
            Started(
                num_rows=inputs.dataset.num_rows,
                num_sequences=inputs.dataset.num_sequences,
                num_dropped_rows=inputs.dataset.num_dropped_rows,
                num_truncated_rows=inputs.dataset.num_truncated_rows,
                num_steps=run.plan.num_steps,
                resumed_from_step=run.step or None,
                device=str(device),
            )
        )
        return run

    def _find_checkpoint(self, config: JobConfig, *, digest: str) -> Checkpoint | None:
        directory = config.output.checkpoints_dir
        prepare_directory(directory)
        found, warnings = latest_valid(directory, run_digest=digest)
        for warning in warnings:
            self._warn(warning)
        standing = found or latest_valid(directory)[0]
        if standing is not None and (found is None or not config.resume):
            raise _occupied(config, found=standing)
        return found

    def _train(self, run: Run) -> TrainingResult:
        reporter = Reporter(run, emit=self._tell, clock=self._clock)
        if run.saved is not None:
            self._announce(run.saved)  # it may be that nobody heard of it before the run was cut off
        overlaps = overlaps_writing(run.config.output.overlap_writing, num_processes=self._team.size)
        with Saver(run, overlaps=overlaps, announce=self._announce, clock=self._clock) as saver:
            while not run.is_done:
                request = self._request()
                if request is not None:
                    return self._end_early(run, reporter=reporter, saver=saver, state=END_STATES[request])
                reporter.after_step(run.advance())
                saver.hear()
                if run.is_checkpoint_due:
                    saver.save()
        return reporter.result("finished")

    def _end_early(self, run: Run, *, reporter: Reporter, saver: Saver, state: EndState) -> TrainingResult:
        reporter.catch_up()
        saver.finish()
        if run.step and (run.saved is None or run.saved.state.step != run.step):
            saver.save_now()
        return reporter.result(state)

    def _announce(self, checkpoint: Checkpoint) -> None:
        manifest = checkpoint.manifest
        self._tell(
            CheckpointSaved(
                path=str(checkpoint.path),
                step=manifest.step,
                is_final=manifest.is_final,
                weights_sha256=manifest.weights_sha256,
                train_loss=manifest.train_loss,
            )
        )

    def _request(self) -> Request | None:
        """What any process was asked, so that all end after the same step."""
        return REQUESTS[self._team.highest(REQUESTS.index(self._control.request))]

    def _warn(self, message: str) -> None:
        self._tell(Warned(message=message))

    def _tell(self, message: ChildMessage) -> None:
        if self._team.is_first:
            self._emit(message)


@dataclass(frozen=True)
class _Place:
    """Where a model learns, where it is loaded, and the processes that share its steps."""

    device: torch.device
    home: torch.device
    team: Team


@dataclass(frozen=True, eq=False)
class _Inputs:
    tokenizer: Any
    dataset: TokenizedDataset
    dtype: torch.dtype
    is_packed: bool
    digest: str


def _read_inputs(
    config: JobConfig, *, device: torch.device, warn: Callable[[str], None], team: Team
) -> _Inputs:
    check_available(config.environment.cross_entropy, device=device)
    parent_sha256 = identify_model(config.model.path)
    check_locked(config)
    tokenizer = load_tokenizer(config.model.path)
    # The first process fills the token cache for the others.
    dataset = team.first_before_others(lambda: _read_dataset(config, tokenizer=tokenizer, warn=warn))
    dtype = choose_dtype(config.model.dtype, device=device)
    is_packed = wants_packing(
        config.environment.batching, device=device, dtype=dtype, model=config.model.path
    )
    digest = run_digest(
        config, data_digest=dataset.digest, parent_sha256=parent_sha256, dtype=dtype, is_packed=is_packed
    )
    return _Inputs(tokenizer=tokenizer, dataset=dataset, dtype=dtype, is_packed=is_packed, digest=digest)


def _read_dataset(config: JobConfig, *, tokenizer: Any, warn: Callable[[str], None]) -> TokenizedDataset:
    settings = config.data
    encoder = ChatEncoder(tokenizer, profile=profile_named(config.profile.name))
    tokenize: Any = tokenize_file
    if settings.token_cache_dir is not None and settings.max_token_cache_bytes:
        tokenize = TokenCache(
            settings.token_cache_dir, max_bytes=settings.max_token_cache_bytes, warn=warn
        ).open
    try:
        dataset: TokenizedDataset = tokenize(
            settings.path, encoder=encoder, max_length=config.model.max_length, overlong=settings.overlong
        )
    except DatasetError as error:
        raise DataError(error.message, remedy=error.remedy) from error
    return dataset


def _make_run(
    config: JobConfig, *, inputs: _Inputs, model: Any, place: _Place, warn: Callable[[str], None]
) -> Run:
    check_positions(model, dataset=inputs.dataset, warn=warn)
    exchange = _prepare_model(model, config=config, inputs=inputs, place=place)
    optimizer = make_optimizer(model, hyperparameters=config.hyperparameters)
    runner = StepRunner(
        model,
        optimizer=optimizer,
        dataset=inputs.dataset,
        hyperparameters=config.hyperparameters,
        device=place.device,
        dtype=inputs.dtype,
        warn=warn,
        max_tokens=config.environment.max_part_tokens,
        cross_entropy=config.environment.cross_entropy,
        is_packed=inputs.is_packed,
        team=place.team,
        exchange=exchange,
    )
    return Run(
        config=config,
        digest=inputs.digest,
        model=model,
        tokenizer=inputs.tokenizer,
        optimizer=optimizer,
        runner=runner,
        dataset=inputs.dataset,
        plan=_plan_of(inputs, hyperparameters=config.hyperparameters),
        device=place.device,
        dtype=inputs.dtype,
        team=place.team,
    )


def _plan_of(inputs: _Inputs, *, hyperparameters: Hyperparameters) -> BatchPlan:
    return BatchPlan(
        lengths=inputs.dataset.lengths,
        tokens_per_batch=hyperparameters.tokens_per_batch,
        num_epochs=hyperparameters.num_epochs,
        seed=hyperparameters.seed,
        max_steps=hyperparameters.max_steps,
        is_packed=inputs.is_packed,
    )


def _prepare_model(model: Any, *, config: JobConfig, inputs: _Inputs, place: _Place) -> Exchange:
    """Make a model learn as the job has it, in place; how its gradients meet those of other processes."""
    environment, hyperparameters = config.environment, config.hyperparameters
    if suits_fused_layers(device=place.device, dtype=inputs.dtype):
        fuse_layers(model)
    shortest = np.array([inputs.dataset.lengths.argmin()])
    probe = collate(inputs.dataset, indices=shortest, device=place.home)
    check_projection(model, batch=probe)
    check_causal(model, batch=probe)
    if inputs.is_packed:
        use_packed_attention(model)
    if wants_gradient_checkpointing(environment.gradient_checkpointing, device=place.device):
        checkpoint_gradients(model)
    if hyperparameters.adapter is not None:
        _refuse_shards(config, team=place.team)
        add_adapter(model, settings=hyperparameters.adapter, seed=hyperparameters.seed, dtype=inputs.dtype)
    return exchange_for(model, parallel=environment.parallel, team=place.team, device=place.device)


def _refuse_shards(config: JobConfig, *, team: Team) -> None:
    if is_sharded(config.environment.parallel, team=team):
        raise ConfigError(
            "environment.parallel = 'fsdp' does not go with an adapter.",
            field="environment.parallel",
            value="fsdp",
            remedy="Use ddp: what an adapter adds to the weights is small.",
        )


def _occupied(config: JobConfig, *, found: Checkpoint) -> ConfigError:
    before = found.manifest.config.get("hyperparameters")
    after = config.hyperparameters.as_json()
    changed = [
        name for name, value in after.items() if isinstance(before, dict) and before.get(name) != value
    ]
    what = f" with other {', '.join(changed)}" if changed else " with other data, parent or settings"
    is_same = "" if config.resume else ", and resume is false"
    return ConfigError(
        f"output.checkpoints_dir holds {found.path.name} of a run{what}{is_same}: it is not overwritten.",
        field="output.checkpoints_dir",
        value=str(config.output.checkpoints_dir),
        remedy="Name another directory, or submit this as a job of its own.",
    )
