"""Two checkpoints compared: their evidence is read, then judged with no transaction open."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from config.settings import RankingSettings
from intelligence.comparison import compare
from registry import judgements, lineage
from registry.errors import NotFound
from registry.files import sha256_text
from registry.messages import Evidence
from registry.records import Checkpoint, Comparison, Dataset, Suite
from registry.store import Registry, Transaction


@dataclass(frozen=True)
class Descent:
    """How two checkpoints are related: their nearest common ancestor, and what each was trained on since."""

    common_checkpoint_id: str | None
    left_datasets: tuple[str, ...]
    right_datasets: tuple[str, ...]


def compare_checkpoints(
    registry: Registry, *, left_id: str, right_id: str, settings: RankingSettings
) -> tuple[Comparison, Descent]:
    """Right against left on the active suite; `NotFound` says what is missing.

    The bootstrap is seeded by the two evaluations: the same question gets the same answer.
    """
    with registry.reading() as tx:
        suite = lineage.active_suite(tx)
        if suite is None:
            raise NotFound("No suite is active.", remedy="`tandem suite build FILE` makes one.")
        left, right = (_evidence(tx, checkpoint_id=one, suite=suite) for one in (left_id, right_id))
        descent = _descent(tx, left_id=left_id, right_id=right_id)
    seed = int(sha256_text(f"{left.evaluation_id} {right.evaluation_id}")[:8], 16)
    comparison = compare(
        left,
        right,
        weights=settings.weights,
        num_resamples=settings.num_resamples,
        rng=np.random.default_rng(seed),
    )
    return comparison, descent


def _evidence(tx: Transaction, *, checkpoint_id: str, suite: Suite) -> Evidence:
    tx.get(Checkpoint, checkpoint_id)
    evaluation = lineage.answered_evaluation(tx, checkpoint_id=checkpoint_id, suite_id=suite.id)
    if evaluation is None:
        raise NotFound(
            f"{checkpoint_id} was not evaluated on {suite.name} ({suite.id}).",
            remedy=f"Wait for its evaluation; `tandem checkpoint show {checkpoint_id}` tells of it.",
        )
    return Evidence(
        checkpoint_id=checkpoint_id,
        evaluation_id=evaluation.id,
        suite_id=suite.id,
        examples=judgements.examples_of(tx, evaluation_id=evaluation.id),
    )


def _descent(tx: Transaction, *, left_id: str, right_id: str) -> Descent:
    left, right = (lineage.ancestors(tx, checkpoint_id=one) for one in (left_id, right_id))
    names = {checkpoint.id for checkpoint in right}
    common = next((checkpoint.id for checkpoint in left if checkpoint.id in names), None)
    return Descent(
        common_checkpoint_id=common,
        left_datasets=_datasets(tx, chain=left, until=common),
        right_datasets=_datasets(tx, chain=right, until=common),
    )


def _datasets(tx: Transaction, *, chain: list[Checkpoint], until: str | None) -> tuple[str, ...]:
    """The names of the files trained on since an ancestor, the first one first; each once."""
    since = chain[: [one.id for one in chain].index(until)] if until else chain
    ids = [one.dataset_id for one in reversed(since) if one.dataset_id is not None]
    found = (tx.seek(Dataset, dataset_id) for dataset_id in dict.fromkeys(ids))
    return tuple(dataset.name for dataset in found if dataset is not None)
