"""The benchmark's truth is what the product measures, on the same rows and whatever the tokenizer."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.support import faults
from benchmarks.support.faults import KINDS, Planted, Start
from benchmarks.support.lab import BRANCH, OPERATIONS, TAGS, Lab, Rows
from inference.evaluate import evaluate_rows
from inference.model import load_model
from registry.records import GenerationSettings

SWAPS = (("e", "t"),)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab.make(tmp_path_factory.mktemp("lab"), num_suite_rows=60, seed=3)
    for _ in lab.train(hyperparameters=BRANCH, num_steps=3, seed=0):
        pass
    return lab


def suite_rows(lab: Lab) -> Rows:
    return lab._tokenized("suite")


@pytest.mark.parametrize("swaps", [(), SWAPS])
def test_a_models_true_losses_are_those_that_an_evaluation_gives(
    lab: Lab, tmp_path: Path, swaps: tuple[tuple[str, str], ...]
) -> None:
    planted = Planted(lab.weights(), swaps=swaps)
    directory = faults.save(lab, planted, directory=tmp_path / "model")
    loaded = load_model(directory, device="cpu", verify_files=False)
    answers = evaluate_rows(loaded, lab.suite, settings=GenerationSettings(max_new_tokens=1))
    truth = lab.losses(suite_rows(lab), ids=faults.swapped_ids(lab, swaps=swaps))
    assert np.allclose([answer.loss for answer in answers], truth, atol=1e-4)


def test_exchanged_letters_change_the_loss_of_rows_that_hold_them_alone(lab: Lab) -> None:
    rows = suite_rows(lab)
    plain, swapped = lab.losses(rows), lab.losses(rows, ids=faults.swapped_ids(lab, swaps=SWAPS))
    held = np.array([bool({"e", "t"} & set(row.messages[0].content + row.expected)) for row in lab.suite])
    assert np.array_equal(plain[~held], swapped[~held])
    assert (plain[held] != swapped[held]).all()


def test_suite_and_pool_have_no_row_in_common_and_all_tags_alike(lab: Lab) -> None:
    suite, pool = ({row["prompt"] for row in lab._read(name)} for name in ("suite", "pool"))
    assert (len(suite), len(pool), suite & pool) == (60, 360, set())
    assert {tag: int((lab.pool.tags == tag).sum()) for tag in TAGS} == dict.fromkeys(OPERATIONS, 36)


@pytest.mark.parametrize("kind", ["weight noise", "ruined layer"])
def test_a_fault_comes_to_the_size_that_was_asked_for(lab: Lab, kind: str) -> None:
    weights = lab.weights()
    before = lab.losses(lab.pool).mean()

    def measure(ids: object) -> float:
        assert ids is None
        return float(lab.losses(lab.pool).mean() / before - 1)

    start = Start(weights=weights, earlier=())
    planted = KINDS[kind](lab, start=start, measure=measure, target=0.1, seed=1)
    lab.use(planted.weights)
    assert measure(None) == pytest.approx(0.1, abs=0.03)
    assert any(not torch.equal(value, weights[name]) for name, value in planted.weights.items())
    lab.use(weights)
