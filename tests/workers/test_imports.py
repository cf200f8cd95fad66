"""A suite is held against all training data, also against what is submitted while it is built; a base model
against what is locked.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from config.settings import Settings, load_settings
from registry.errors import DatasetError
from registry.manifests import verify
from registry.messages import CheckpointImport, SuiteBuild
from registry.records import Checkpoint, Dataset, Suite
from registry.store import Registry
from trainer.errors import ConfigError
from workers import intake
from workers.imports import import_model, import_suite


def write_rows(path: Path, *, first: int, last: int) -> Path:
    rows = [{"prompt": f"spell {number}", "completion": str(number)} for number in range(first, last)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def learnt(settings: Settings, registry: Registry) -> Dataset:
    path = write_rows(settings.paths.inbox / "learnt.jsonl", first=0, last=3)
    return intake.take_dataset(path, settings=settings, now=registry.clock())


@pytest.fixture
def asked(settings: Settings) -> Path:
    return write_rows(settings.paths.inbox / "asked.jsonl", first=2, last=60)


def test_a_suite_that_training_data_gives_away_is_not_built(
    settings: Settings, registry: Registry, learnt: Dataset, asked: Path
) -> None:
    with registry.transaction() as tx:
        tx.add(learnt, actor="test")
    with pytest.raises(DatasetError, match=r"learnt: 1 rows are also in .*leave these questions out"):
        import_suite(SuiteBuild(path=str(asked)), settings=settings, registry=registry)
    with registry.reading() as tx:
        assert tx.find(Suite) == []


def test_data_that_is_submitted_while_a_suite_is_checked_is_looked_at_too(
    settings: Settings, registry: Registry, learnt: Dataset, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = registry.transaction

    def submit_first(**options: Any) -> Any:
        monkeypatch.setattr(registry, "transaction", begin)
        with begin() as tx:
            tx.add(learnt, actor="test")
        return begin(**options)

    monkeypatch.setattr(registry, "transaction", submit_first)
    with pytest.raises(DatasetError, match="learnt: 1 rows are also in the validation suite"):
        import_suite(SuiteBuild(path=str(asked)), settings=settings, registry=registry)
    with registry.reading() as tx:
        assert tx.find(Suite) == []


def test_a_suite_whose_message_comes_again_takes_no_later_ones_place(
    settings: Settings, registry: Registry, asked: Path
) -> None:
    later = write_rows(settings.paths.inbox / "later.jsonl", first=100, last=140)

    def build(path: Path, message_id: str) -> str:
        request = SuiteBuild(path=str(path))
        return import_suite(request, settings=settings, registry=registry, message_id=message_id).id

    first = build(asked, "m-1")
    second = build(later, "m-2")
    assert [build(asked, "m-1") for _ in range(4)] == [first] * 4
    with registry.reading() as tx:
        assert [suite.id for suite in tx.find(Suite, is_active=True)] == [second]
    assert build(asked, "m-3") == first
    with registry.reading() as tx:
        assert [suite.id for suite in tx.find(Suite, is_active=True)] == [first]


def model(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"vocab_size": 9}')
    (directory / "tokenizer_config.json").write_text("{}")
    save_file({"weight": np.zeros(2, np.float32)}, directory / "model.safetensors")
    return directory


def locked_to(settings: Settings, **locked: Any) -> Settings:
    return load_settings(home=settings.home, training={"locked": locked})


def test_a_base_model_that_is_not_the_locked_one_is_not_taken_in(
    settings: Settings, registry: Registry
) -> None:
    wanted, other = model(settings.paths.inbox / "Qwen3-0.6B"), model(settings.paths.inbox / "Qwen3-8B")
    locked = locked_to(settings, base_model=str(wanted), model_name="Qwen3-0.6B")
    with pytest.raises(ConfigError, match="base_model is locked"):
        import_model(CheckpointImport(path=str(other), origin="base"), settings=locked, registry=registry)
    with registry.reading() as tx:
        assert tx.find(Checkpoint) == []
    assert not list(settings.paths.base_model.glob("*"))
    taken = import_model(
        CheckpointImport(path=str(wanted), origin="base"), settings=locked, registry=registry
    )
    # What is no base is bound by what it descends from, when it is trained.
    later = import_model(CheckpointImport(path=str(other)), settings=locked, registry=registry)
    assert later.parent_checkpoint_id == taken.id


def test_a_model_whose_message_comes_again_is_one_candidate(settings: Settings, registry: Registry) -> None:
    source = model(settings.paths.inbox / "tuned")
    import_model(CheckpointImport(path=str(source), origin="base"), settings=settings, registry=registry)
    request = CheckpointImport(path=str(source), origin="imported")

    def bring(message_id: str) -> str:
        return import_model(request, settings=settings, registry=registry, message_id=message_id).id

    first = bring("m-1")
    assert [bring("m-1") for _ in range(3)] == [first] * 3
    assert bring("m-2") != first
    with registry.reading() as tx:
        assert len(tx.find(Checkpoint, origin="imported")) == 2
    assert len(list((settings.paths.checkpoints / "imported").iterdir())) == 2


def test_a_base_model_that_is_brought_again_is_the_one_that_stands(
    settings: Settings, registry: Registry
) -> None:
    source = model(settings.paths.inbox / "base")
    request = CheckpointImport(path=str(source), origin="base")
    first, again = (import_model(request, settings=settings, registry=registry) for _ in range(2))
    assert again == first
    assert [path.name for path in settings.paths.base_model.iterdir()] == [first.id]


def test_a_model_that_was_copied_and_not_registered_is_taken_anew(
    settings: Settings, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model(settings.paths.inbox / "tuned")
    import_model(CheckpointImport(path=str(source), origin="base"), settings=settings, registry=registry)
    request = CheckpointImport(path=str(source), origin="imported")
    with monkeypatch.context() as patch:
        patch.setattr("workers.imports._record", lambda *_, **__: 1 / 0)  # dies after the copy
        with pytest.raises(ZeroDivisionError):
            import_model(request, settings=settings, registry=registry, message_id="m-1")
    taken = import_model(request, settings=settings, registry=registry, message_id="m-1")
    assert verify(Path(taken.path), with_state=False).weights_sha256 == taken.weights_sha256
    assert [path.name for path in (settings.paths.checkpoints / "imported").iterdir()] == [taken.id]
