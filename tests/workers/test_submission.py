"""A submission fixes everything of its job: request over host over default, whatever changes later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config.settings import Settings
from registry.errors import DatasetError
from registry.messages import TrainingSubmission
from registry.records import Checkpoint, Dataset, TrainingJob
from registry.store import Registry
from registry.testing import make_checkpoint, make_suite
from trainer.config.job import JobConfig
from trainer.errors import ConfigError
from workers import submission
from workers.job_files import job_config
from workers.submission import submit

ROWS = [{"prompt": "(add 1 2)", "completion": "3"}, {"prompt": "( MUL 02 x )", "completion": "2x"}]


@pytest.fixture
def base(registry: Registry) -> Checkpoint:
    with registry.transaction() as tx:
        checkpoint = make_checkpoint(id="base-aaaaaa", origin="base", step=0)
        tx.add(checkpoint, actor="test")
    return checkpoint


@pytest.fixture
def rows(settings: Settings) -> Path:
    path = settings.paths.inbox / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def with_training(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update={"training": settings.training.model_copy(update=changes)})


def config_of(job: TrainingJob, *, registry: Registry, base: Checkpoint, settings: Settings) -> JobConfig:
    with registry.reading() as tx:
        dataset = tx.get(Dataset, job.dataset_id)
    return job_config(job, dataset=dataset, parent=base, settings=settings)


def test_what_a_request_names_is_fixed_over_what_the_host_says(
    registry: Registry, settings: Settings, base: Checkpoint, rows: Path
) -> None:
    host = with_training(settings, profile="emoji_think", overlong="truncate")
    request = TrainingSubmission(dataset=str(rows), profile="regime3")
    job = submit(request, settings=host, registry=registry).job
    later = with_training(settings, profile="plain_sft", overlong="reject")
    config = config_of(job, registry=registry, base=base, settings=later)
    assert (config.profile.name, config.data.overlong) == ("regime3", "truncate")


def test_a_plain_job_stays_plain_under_another_default(
    registry: Registry, settings: Settings, base: Checkpoint, rows: Path
) -> None:
    job = submit(TrainingSubmission(dataset=str(rows)), settings=settings, registry=registry).job
    later = with_training(settings, profile="emoji_think", overlong="reject")
    config = config_of(job, registry=registry, base=base, settings=later)
    assert (config.profile.name, config.data.overlong) == ("plain_sft", "drop")


def test_how_a_host_saves_memory_and_writes_checkpoints_reaches_the_job(
    registry: Registry, settings: Settings, base: Checkpoint, rows: Path
) -> None:
    job = submit(TrainingSubmission(dataset=str(rows)), settings=settings, registry=registry).job
    chosen = {"gradient_checkpointing": "on", "overlap_writing": "off", "checkpoint_every_steps": 50}
    host = with_training(settings, **chosen)
    config = config_of(job, registry=registry, base=base, settings=host)
    assert config.environment.gradient_checkpointing == "on"
    assert (config.output.overlap_writing, config.output.checkpoint_every_steps) == ("off", 50)


def test_another_profile_is_another_job(
    registry: Registry, settings: Settings, base: Checkpoint, rows: Path
) -> None:
    jobs = [
        submit(TrainingSubmission(dataset=str(rows), profile=name), settings=settings, registry=registry)
        for name in (None, "plain_sft", "regime3", "regime3")
    ]
    assert [job.is_new for job in jobs] == [True, False, True, False]


def test_a_row_that_the_profile_has_no_form_for_is_refused_at_the_door(
    registry: Registry, settings: Settings, base: Checkpoint, rows: Path
) -> None:
    with rows.open("a") as stream:
        stream.write(json.dumps({"prompt": "hello", "completion": "x"}) + "\n")
    request = TrainingSubmission(dataset=str(rows), profile="regime3")
    with pytest.raises(
        DatasetError, match=r"row 3 is not for profile regime3: messages\[0\] \(user\): the canon"
    ):
        submit(request, settings=settings, registry=registry)


def test_a_profile_that_is_not_there_is_refused_at_the_door(
    registry: Registry, settings: Settings, base: Checkpoint, rows: Path
) -> None:
    request = TrainingSubmission(dataset=str(rows), profile="regime4")
    with pytest.raises(ConfigError, match=r"Did you mean regime3\?"):
        submit(request, settings=settings, registry=registry)
    with registry.reading() as tx:
        assert tx.find(TrainingJob) == []


def test_a_new_job_is_rung_once_and_before_its_row_is_written(
    registry: Registry, settings: Settings, base: Checkpoint, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "BELL_LEAD_SECONDS", 60.0)
    rung: list[bool] = []

    def ring(job_id: str) -> None:
        with registry.reading() as tx:
            rung.append(tx.seek(TrainingJob, job_id) is not None)

    submit(TrainingSubmission(dataset=str(rows)), settings=settings, registry=registry, ring=ring)
    assert rung == [False]


def test_for_a_job_that_waits_already_somebody_is_rung_too(
    registry: Registry, settings: Settings, base: Checkpoint, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "BELL_LEAD_SECONDS", 60.0)
    request, rung = TrainingSubmission(dataset=str(rows)), list[str]()
    first = submit(request, settings=settings, registry=registry)
    again = submit(request, settings=settings, registry=registry, ring=rung.append)
    assert again.job.id == first.job.id
    assert len(rung) == 1  # whoever comes takes what waits, whichever job the bell was for


def test_a_row_that_took_long_to_write_is_rung_for_again(
    registry: Registry, settings: Settings, base: Checkpoint, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "BELL_LEAD_SECONDS", 0.0)
    rung: list[str] = []
    request = TrainingSubmission(dataset=str(rows))
    job = submit(request, settings=settings, registry=registry, ring=rung.append).job
    assert rung == [job.id, job.id]


def test_a_suite_that_was_built_while_a_file_was_checked_is_looked_at_too(
    registry: Registry, settings: Settings, base: Checkpoint, rows: Path
) -> None:
    def build(_job_id: str) -> None:
        with registry.transaction() as tx:
            tx.add(make_suite(path=str(rows)), actor="test")

    request = TrainingSubmission(dataset=str(rows))
    with pytest.raises(DatasetError, match="2 rows are also in the validation suite suite-1"):
        submit(request, settings=settings, registry=registry, ring=build)
    with registry.reading() as tx:
        assert tx.find(Dataset) == []
