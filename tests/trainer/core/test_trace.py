"""The trace of rows: what each step learnt from, over all attempts, whatever cut one off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.config.job import JobConfig
from trainer.core.engine import TrainerEngine
from trainer.core.trace import TRACE_NAME, RowTrace, read_trace
from trainer.errors import DiskFull
from trainer.testing import ScriptedControl

MakeEngine = Callable[..., TrainerEngine]
JobFactory = Callable[..., JobConfig]
TRACED = {"monitoring": {"record_rows": True}}


def test_an_epoch_uses_every_row_once_and_says_so(engine: MakeEngine, job: JobFactory) -> None:
    config = job(**TRACED)
    result = engine().run_job(config)
    lines = read_trace(config.output.checkpoints_dir)
    used = Counter(row for line in lines for row in line.rows)
    assert used == Counter(range(1, 25))
    assert [line.step for line in lines if line.what == "taken"] == [*range(1, result.num_steps + 1)]
    assert [line.step for line in lines if line.what == "saved"] == [result.num_steps]


def test_a_resumed_run_is_another_attempt_that_says_where_it_went_on(
    engine: MakeEngine, job: JobFactory
) -> None:
    config = job(**TRACED)
    engine(control=ScriptedControl(after_steps=2)).run_job(config)
    engine().run_job(config)
    lines = read_trace(config.output.checkpoints_dir)
    assert next(line.step for line in lines if line.resumed_from_step == 2 and line.rows) == 3
    assert len({line.attempt for line in lines}) == 2


def test_nothing_is_traced_unless_it_is_asked_for(engine: MakeEngine, job: JobFactory) -> None:
    engine().run_job(job())
    assert not (job().output.checkpoints_dir / TRACE_NAME).exists()


def test_a_line_written_half_by_a_killed_attempt_spoils_no_other(tmp_path: Path) -> None:
    RowTrace(tmp_path, attempt="one", resumed_from_step=0).taken(1, rows=(3,))
    path = tmp_path / TRACE_NAME
    path.write_bytes(path.read_bytes() + b'{"attempt": "one", "ste')
    RowTrace(tmp_path, attempt="two", resumed_from_step=0).taken(1, rows=(3,))
    assert [(line.attempt, line.rows) for line in read_trace(tmp_path)] == [("one", (3,)), ("two", (3,))]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / TRACE_NAME).symlink_to("/dev/full")
    with pytest.raises(DiskFull, match="No space left"):
        RowTrace(tmp_path, attempt="one", resumed_from_step=0).saved(1)
