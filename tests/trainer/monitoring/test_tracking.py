"""Tools that a run is reported to: each one really told, none able to stop or to slow the run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from registry.files import sha256_file
from trainer.config.job import JobConfig
from trainer.core.engine import TrainerEngine
from trainer.errors import ConfigError, Diverged
from trainer.messages import ChildMessage, Finished, Progress, Started, Warned
from trainer.monitoring import tools, tracking
from trainer.monitoring.seam import ReportedRun, Tracker
from trainer.monitoring.tools import make_trackers
from trainer.monitoring.tracking import Tracking
from trainer.testing import ScriptedControl

Make = Callable[..., TrainerEngine]
STARTED = Started(num_rows=1, num_sequences=1, num_steps=9, device="cpu")


class FakeTracker:
    """Remembers what it is told; raises or hangs where it was told to."""

    def __init__(self, *, raises_at: str = "", gate: threading.Event | None = None) -> None:
        self.told: list[Any] = []
        self._raises_at = raises_at
        self._gate = gate

    def start(self, run: ReportedRun) -> None:
        self._act("start", run)

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        self._act("log", (step, dict(numbers)))

    def finish(self, *, is_good: bool) -> None:
        self._act("finish", is_good)

    def _act(self, name: str, what: object) -> None:
        if self._gate is not None:
            self._gate.wait(10)
        if name == self._raises_at:
            raise OSError("no space left")
        self.told.append((name, what))


def report(step: int) -> Progress:
    return Progress(
        step=step,
        num_steps=9,
        epoch=0.5,
        loss=2.0,
        learning_rate=0.1,
        grad_norm=1.0,
        num_tokens=10,
        num_unused_rows=0,
        peak_memory_bytes=1,
    )


def to(tool: str, directory: Path) -> dict[str, Any]:
    return {"report_every_seconds": 0, "report_to": [tool], "logs_dir": str(directory)}


def warnings_of(said: list[ChildMessage]) -> list[str]:
    return [message.message for message in said if isinstance(message, Warned)]


def losses_of(said: list[ChildMessage]) -> list[tuple[int, float]]:
    return [(message.step, message.loss) for message in said if isinstance(message, Progress)]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_is_told_each_report_and_the_weights_stay_the_same(
    engine: Make, job: Callable[..., JobConfig], said: list[ChildMessage], tmp_path: Path
) -> None:
    engine().run_job(job(monitoring=to("tensorboard", tmp_path / "logs")))
    told = losses_of(said)
    engine().run_job(job(output={"checkpoints_dir": str(tmp_path / "plain")}))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard" / "job-1"))
    events.Reload()
    read = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert read == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in told]
    assert warnings_of(said) == []
    weights = [
        sha256_file(max((tmp_path / name).glob("*/model.safetensors"))) for name in ("checkpoints", "plain")
    ]
    assert weights[0] == weights[1]


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_mlflow_is_told_each_report_and_a_run_that_goes_on_is_the_same_run(
    engine: Make,
    job: Callable[..., JobConfig],
    said: list[ChildMessage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 120.0)  # its import alone takes ten on a busy machine
    config = job(monitoring=to("mlflow", tmp_path / "logs"))
    engine(control=ScriptedControl(request="stop", after_steps=2)).run_job(config)
    engine().run_job(config)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'logs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tandem")
    (run,) = client.search_runs([experiment.experiment_id])
    read = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")}
    assert read == dict(losses_of(said))
    assert len(read) == 4
    assert (run.info.run_name, run.info.status) == ("job-1", "FINISHED")
    assert run.data.params["hyperparameters/learning_rate"] == "0.001"
    assert warnings_of(said) == []


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_an_offline_run(
    engine: Make,
    job: Callable[..., JobConfig],
    said: list[ChildMessage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    request.addfinalizer(wandb.teardown)  # else its service runs on until this process ends
    engine().run_job(job(monitoring=to("wandb", tmp_path / "logs")))
    (written,) = (tmp_path / "logs" / "wandb").glob("offline-run-*-job-1/run-job-1.wandb")
    assert b"train/loss" in written.read_bytes()
    assert warnings_of(said) == []


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")
def test_trackio_writes_a_local_database(
    engine: Make,
    job: Callable[..., JobConfig],
    said: list[ChildMessage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    engine().run_job(job(monitoring=to("trackio", tmp_path / "logs")))
    from trackio.sqlite_storage import SQLiteStorage

    read = [(line["step"], line["train/loss"]) for line in SQLiteStorage.get_logs("tandem", "job-1")]
    assert read == losses_of(said)
    assert warnings_of(said) == []


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_what_wandb_and_trackio_are_called_with(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a module of the same shape, so that this is seen where neither is installed."""
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda numbers, *, step: calls.append((step, numbers)),
        finish=lambda **options: calls.append(("finish", options)),
    )

    def init(**options: Any) -> Any:
        calls.append(options)
        return run

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init, Settings=dict))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = tools.KINDS[name].make()
    tracker.start(ReportedRun("job-1", directory=tmp_path, settings={"profile": "plain_sft"}))
    tracker.log({"train/loss": 1.5}, step=3)
    tracker.finish(is_good=False)
    assert (calls[0]["project"], calls[0]["name"], calls[0]["resume"]) == ("tandem", "job-1", "allow")
    assert calls[0]["config"] == {"profile": "plain_sft"}
    assert calls[0].get("mode") == ("offline" if name == "wandb" else None)
    assert calls[1] == (3, {"train/loss": 1.5})
    assert calls[2][0] == "finish"


def run_with(
    trackers: Mapping[str, Tracker], *, config: JobConfig, num_reports: int = 3
) -> list[ChildMessage]:
    said: list[ChildMessage] = []
    with Tracking(trackers, config=config, emit=said.append, finish_seconds=2.0) as emit:
        emit(STARTED)
        for step in range(1, num_reports + 1):
            emit(report(step))
    return said


@pytest.mark.parametrize("moment", ["start", "log", "finish"])
def test_a_tool_that_raises_is_warned_about_once_and_the_others_go_on(
    job: Callable[..., JobConfig], moment: str
) -> None:
    broken, sound = FakeTracker(raises_at=moment), FakeTracker()
    said = run_with({"broken": broken, "sound": sound}, config=job())
    assert warnings_of(said) == ["broken is told nothing more: OSError: no space left"]
    assert [name for name, _ in sound.told] == ["start", "log", "log", "log", "finish"]


def test_a_tool_that_hangs_holds_up_neither_a_report_nor_the_end(
    job: Callable[..., JobConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "MAX_WAITING", 2)
    gate, said = threading.Event(), list[ChildMessage]()
    with Tracking(
        {"slow": FakeTracker(gate=gate)}, config=job(), emit=said.append, finish_seconds=0.05
    ) as emit:
        for message in (STARTED, *map(report, range(1, 9))):
            emit(message)
        assert [message for message in said if isinstance(message, Progress)] == [*map(report, range(1, 9))]
    dropped, hung = warnings_of(said)
    assert "too slow for" in dropped
    assert "slow: not done after 0.05 s" in hung
    gate.set()


def test_nothing_is_said_after_the_result(
    engine: Make, job: Callable[..., JobConfig], said: list[Any]
) -> None:
    engine().run_job(job())
    assert isinstance(said[-1], Finished)


def test_a_tool_hears_that_a_run_failed(job: Callable[..., JobConfig]) -> None:
    tracker = FakeTracker()
    with (
        pytest.raises(Diverged),
        Tracking({"one": tracker}, config=job(), emit=lambda _: None, finish_seconds=5.0) as emit,
    ):
        emit(STARTED)
        raise Diverged("loss is nan")
    assert tracker.told[-1] == ("finish", False)


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    job: Callable[..., JobConfig], engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="mlflow, which is not installed") as caught:
        engine().run_job(job(monitoring={"report_to": ["mlflow"]}))
    assert caught.value.remedy == "Install it: pip install 'tandem[mlflow]'."
    assert caught.value.field == "monitoring.report_to"


def test_an_unknown_tool_is_refused(job: Callable[..., JobConfig]) -> None:
    with pytest.raises(ConfigError, match="'comet': Input should be 'tensorboard', 'mlflow', 'wandb' or 'tr"):
        job(monitoring={"report_to": ["comet"]})


def test_only_the_first_process_of_a_run_reports(
    job: Callable[..., JobConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = job(monitoring={"report_to": ["tensorboard"]})
    assert list(make_trackers(config.monitoring.report_to)) == ["tensorboard"]
    monkeypatch.setenv("RANK", "1")
    assert tracking.tracking(config, emit=lambda _: None)._trackers == {}
