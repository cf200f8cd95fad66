"""What nobody can judge, from door to door: unknown with its reason, never served, no half record."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from config.settings import Settings, load_settings, setting_names
from deploy.errors import DeployError
from inference.testing import build_sealed_tiny_model, seal
from registry import judgements
from registry.files import sha256_file
from registry.messages import DeploymentRequest
from registry.records import Checkpoint, Evaluation, Verdict
from registry.states import CheckpointState, EvaluationState, Outcome
from registry.testing import ManualClock, make_checkpoint, make_registry, make_suite
from tasks import accuracy, calibration, deployment, evaluation, regression
from workers.context import Context
from workers.contracts import parse_request
from workers.pipeline import owed

pytestmark = pytest.mark.model
DOORS: dict[str, Callable[..., object]] = {
    "evaluation.run": evaluation.run,
    "evaluation.defer": evaluation.defer,
    "evaluation.record": evaluation.record,
    "regression.check": regression.check,
    "regression.record": regression.record,
    "testing.run": accuracy.run,
    "testing.record": accuracy.record,
    "calibration.run": calibration.run,
    "calibration.record": calibration.record,
}
ROWS: list[dict[str, object]] = [
    {"prompt": f"Say {'x' * place}", "completion": "x" * (place + 1), "difficulty": "easy"}
    for place in range(40)
]
ID = "ckpt-bbbbbb-00000010"
NUM_TURNS, LONGEST_TURN_SECONDS = 6, 3.0


class Desk:
    """Stands for Celery: each message is carried to its door, through JSON, in the order they were sent."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings, self.directory, self.clock = settings, directory, ManualClock()
        self.open()

    def open(self) -> None:
        """With a registry's handle of its own: none may cross a fork. What was sent is lost."""
        registry = make_registry(self.directory, clock=self.clock)
        self.context = Context(settings=self.settings, registry=registry, celery=self)  # type: ignore[arg-type]
        self.waiting: list[tuple[str, dict[str, Any]]] = []

    def send_task(self, name: str, *, kwargs: dict[str, Any], **_options: Any) -> Any:
        self.waiting.append((name, json.loads(json.dumps(kwargs))))
        return type("Sent", (), {"id": "1"})

    def work(self) -> None:
        """Until nothing is owed and nothing waits; what has no door here is let go."""
        with self.context.registry.transaction() as tx:
            messages = owed(tx, settings=self.context.settings)
        self.context.ring(messages)
        while self.waiting:
            name, fields = self.waiting.pop(0)
            if name in DOORS:
                DOORS[name](parse_request(name, fields=fields), self.context)

    def add(self, *, base: Path, model: Path, suite: Path) -> None:
        """The base model, which is the anchor; a trained checkpoint; the active suite."""
        with self.context.registry.transaction() as tx:
            tx.add(make_suite(path=str(suite), content_sha256=sha256_file(suite)), actor="test")
            tx.add(checkpoint("base-aaaaaa", path=base, origin="base", step=0), actor="test")
            tx.add(checkpoint(ID, path=model), actor="test")


def checkpoint(checkpoint_id: str, *, path: Path, **changes: Any) -> Checkpoint:
    sha256 = sha256_file(path / "model.safetensors")
    return make_checkpoint(id=checkpoint_id, path=str(path), weights_sha256=sha256, **changes)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_EVALUATION__DEVICE", "cpu")
    monkeypatch.setenv("TANDEM_EVALUATION__NUM_THREADS", "1")
    monkeypatch.setenv("TANDEM_EVALUATION__MAX_NEW_TOKENS", "4")
    # As often as a test kills; the default gives up after three.
    monkeypatch.setenv("TANDEM_EVALUATION__MAX_ASKS", "100")
    settings = load_settings(home=tmp_path / "home")
    settings.paths.prepare()
    return Desk(settings, tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sealed_tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    """The same weights, so that nothing but what is spoiled tells it from the base model."""
    return shutil.copytree(base, tmp_path / "model")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def spoil_weights(model: Path, *, value: float) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][:] = value
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    (model / "manifest.json").unlink()
    seal(model)


def no_tokenizer(model: Path, _suite: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "manifest.json").unlink()
    seal(model)


def a_row_without_answer(_model: Path, suite: Path) -> None:
    suite.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"prompt": "Say", "completion": ""}]))


def test_what_can_be_judged_is_accepted(desk: Desk, base: Path, model: Path, suite: Path) -> None:
    desk.add(base=base, model=model, suite=suite)
    desk.work()
    with desk.context.registry.reading() as tx:
        assert tx.get(Checkpoint, ID).state is CheckpointState.ACCEPTED


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda model, suite: spoil_weights(model, value=math.nan), "weights hold NaN or infinity"),
        (lambda model, suite: spoil_weights(model, value=3e38), "the loss is|not finite"),
        (no_tokenizer, "has no tokenizer"),
        (lambda model, suite: suite.write_text(""), "has no rows"),
        (a_row_without_answer, "line 41: .*empty"),
    ],
    ids=["NaN weights", "infinite logits", "no tokenizer", "empty suite", "row without answer"],
)
def test_what_cannot_be_judged_is_unknown_and_never_served(
    desk: Desk, base: Path, model: Path, suite: Path, spoil: Callable[[Path, Path], object], reason: str
) -> None:
    spoil(model, suite)
    desk.add(base=base, model=model, suite=suite)
    desk.work()
    with desk.context.registry.reading() as tx:
        (verdict,) = tx.find(Verdict, checkpoint_id=ID)
        (asked,) = tx.find(Evaluation, checkpoint_id=ID)
        examples = judgements.examples_of(tx, evaluation_id=asked.id)
        assert tx.get(Checkpoint, ID).state is CheckpointState.CANDIDATE
    assert verdict.outcome is Outcome.UNKNOWN
    told = " ".join([*verdict.reasons, asked.problem, *(example.problem for example in examples)])
    assert re.search(reason, told)
    # All rows or none: never some of them.
    assert len(examples) in (0, len(ROWS))
    assert not any(example.is_correct for example in examples)
    with pytest.raises(DeployError, match="only accepted checkpoints are served"):
        deployment.sync_best(DeploymentRequest(checkpoint_id=ID), desk.context)


def test_a_worker_that_is_told_to_stop_puts_its_evaluation_off_and_another_goes_on_with_it(
    desk: Desk, base: Path, model: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.add(base=base, model=model, suite=suite)
    answers = iter([False] * 10)  # one before the model is loaded, then one a row
    with monkeypatch.context() as stopping:
        stopping.setattr(evaluation, "is_stopping", lambda: next(answers, True))
        desk.work()
    with desk.context.registry.reading() as tx:
        asked = tx.find(Evaluation)
    assert {one.state for one in asked} == {EvaluationState.REQUESTED}
    assert "told to stop, with 10 of 40 rows answered" in asked[0].problem
    # Far sooner than a question that was lost would be asked again.
    desk.clock.advance(desk.context.settings.guard.defer_seconds + 1)
    desk.work()
    assert what_stands(desk) == (EvaluationState.ANSWERED, len(ROWS), [Outcome.PASS])


def one_turn(desk: Desk, *, delay_seconds: float | None) -> int:
    """A worker's process works through all that is owed, and is killed after a while; its exit status."""
    child = os.fork()
    if child == 0:  # never returns into the test
        try:
            desk.open()
            desk.work()
        finally:
            os._exit(0)
    if delay_seconds is not None:
        time.sleep(delay_seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def what_stands(desk: Desk) -> tuple[EvaluationState | None, int, list[Outcome]]:
    """The evaluation's state, how many of its examples there are, and the verdicts."""
    desk.open()
    with desk.context.registry.reading() as tx:
        asked = tx.find(Evaluation, checkpoint_id=ID)
        verdicts = [verdict.outcome for verdict in tx.find(Verdict, checkpoint_id=ID)]
        num_examples = sum(len(judgements.examples_of(tx, evaluation_id=one.id)) for one in asked)
        is_accepted = tx.get(Checkpoint, ID).state is CheckpointState.ACCEPTED
    assert is_accepted == (Outcome.PASS in verdicts)
    assert len(asked) <= 1
    return (asked[0].state if asked else None), num_examples, verdicts


@pytest.mark.parametrize("seed", range(int(os.environ.get("KILL_SEEDS", "2"))))
def test_kill_9_at_any_moment_leaves_no_half_record_and_the_work_goes_on(
    desk: Desk, base: Path, model: Path, suite: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.evaluate.CHUNK_ROWS", 4)
    desk.add(base=base, model=model, suite=suite)
    draw = random.Random(seed)
    num_killed = 0
    # From before the first row to behind the verdict; the soonest first, while there is work to be killed.
    for delay_seconds in sorted(LONGEST_TURN_SECONDS * draw.random() ** 2 for _ in range(NUM_TURNS)):
        status = one_turn(desk, delay_seconds=delay_seconds)
        num_killed += os.WIFSIGNALED(status)
        state, num_examples, verdicts = what_stands(desk)
        assert num_examples == (len(ROWS) if state is EvaluationState.ANSWERED else 0)
        assert verdicts in ([], [Outcome.PASS])
        assert verdicts == [] or state is EvaluationState.ANSWERED
        desk.clock.advance(desk.context.settings.evaluation.retry_after_seconds + 1)
    assert num_killed > 0
    assert one_turn(desk, delay_seconds=None) == 0
    assert what_stands(desk) == (EvaluationState.ANSWERED, len(ROWS), [Outcome.PASS])
