"""Two evaluations laid side by side, row by row: what may be compared, and by how much they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from intelligence.resampling import Floats
from intelligence.statistics import Integers, Statistic, paired_bootstrap
from intelligence.summary import is_known
from registry.messages import Evidence, RegressionLimits
from registry.records import Estimate, ExampleResult

# exp overflows above 709; a ratio of e^50 is beyond any limit.
MAX_LOG_RATIO = 50.0

# Columns of the table of pairs.
CANDIDATE_LOSS, BASELINE_LOSS, CANDIDATE_CORRECT, BASELINE_CORRECT = range(4)


@dataclass(frozen=True)
class Pairs:
    """The same rows answered by two checkpoints, in order of row id.

    `table` has shape (n, 4): losses in nats and correctness, the candidate's before the baseline's.
    `clusters`, shape (n,), numbers the rows by what they share; None where no two rows share anything.
    """

    table: Floats
    clusters: Integers | None
    examples: tuple[ExampleResult, ...]

    @cached_property
    def num_clusters(self) -> int:
        """Independent groups of rows."""
        return len(self.table) if self.clusters is None else len(np.unique(self.clusters))

    @property
    def loss_change(self) -> Floats:
        """Nats, shape (n,): positive where the candidate is worse."""
        change: Floats = self.table[:, CANDIDATE_LOSS] - self.table[:, BASELINE_LOSS]
        return change

    @property
    def accuracy_change(self) -> Floats:
        """Shape (n,): -1 where the candidate lost a row, 1 where it gained one."""
        change: Floats = self.table[:, CANDIDATE_CORRECT] - self.table[:, BASELINE_CORRECT]
        return change

    def baseline_loss(self, *, floor: float) -> float:
        """Mean loss of the baseline, in nats; a smaller one counts as `floor`."""
        return max(float(self.table[:, BASELINE_LOSS].mean()), floor)

    def only(self, places: NDArray[np.bool_]) -> Pairs:
        """The pairs at these places, shape (n,)."""
        clusters = None if self.clusters is None else self.clusters[places]
        kept = tuple(example for example, is_kept in zip(self.examples, places, strict=True) if is_kept)
        return Pairs(table=self.table[places], clusters=clusters, examples=kept)


def why_incomparable(candidate: Evidence, baseline: Evidence, *, min_pairs: int) -> str:
    """The reason why the losses of two evaluations cannot be compared; empty where they can."""
    unmatched = why_unmatched(candidate, baseline)
    if unmatched:
        return unmatched
    if len(candidate.examples) < min_pairs:
        return f"{len(candidate.examples)} paired examples are too few; {min_pairs} are needed."
    return (
        _unknown_losses(candidate, role="candidate")
        or _unknown_losses(baseline, role="baseline")
        or _other_tokens(candidate, baseline)
        or _too_few_clusters(candidate, min_pairs=min_pairs)
    )


def why_unmatched(candidate: Evidence, baseline: Evidence) -> str:
    """The reason why two evaluations have not the same rows, each once; empty where they have."""
    if candidate.suite_id != baseline.suite_id:
        return f"The suites differ: {candidate.suite_id} and {baseline.suite_id}."
    rows, baseline_rows = ({example.row_id for example in side.examples} for side in (candidate, baseline))
    if rows != baseline_rows:
        return (
            f"The rows differ: {len(rows - baseline_rows)} are only the candidate's, "
            f"{len(baseline_rows - rows)} only the baseline's."
        )
    if len(rows) != len(candidate.examples) or len(baseline_rows) != len(baseline.examples):
        return "A row was answered twice in one evaluation."
    return ""


def pair(candidate: Evidence, baseline: Evidence) -> Pairs:
    """The pairs of two evaluations that `why_incomparable` finds comparable."""
    matched = _matched(candidate, baseline)
    rows = [(mine.loss, other.loss, mine.is_correct, other.is_correct) for mine, other in matched]
    examples = tuple(mine for mine, _ in matched)
    return Pairs(
        table=np.array(rows, dtype=np.float64), clusters=cluster_numbers(examples), examples=examples
    )


def measure(pairs: Pairs, *, limits: RegressionLimits, rng: np.random.Generator) -> dict[str, Estimate]:
    """`loss_increase`, `accuracy_change` and `perplexity_ratio` with 95 % intervals of a paired bootstrap.

    Loss: mean(candidate) / mean(baseline) - 1, where a baseline below `min_baseline_loss` nats counts as
    that, for near zero a relative increase explodes (0.001 to 0.002 is +100 %). Accuracy: difference of
    shares. Perplexity: exp of the mean difference of losses.
    """
    return paired_bootstrap(
        pairs.table,
        statistics=_statistics(floor=limits.min_baseline_loss),
        num_resamples=limits.num_resamples,
        rng=rng,
        clusters=pairs.clusters,
    )


def cluster_numbers(examples: Sequence[ExampleResult]) -> Integers | None:
    """Numbers the rows by what they share, shape (n,); None where no two rows share anything."""
    names = [cluster_name(example.cluster, row_id=example.row_id) for example in examples]
    numbers = {name: place for place, name in enumerate(dict.fromkeys(names))}
    if len(numbers) == len(names):
        return None
    return np.array([numbers[name] for name in names], dtype=np.int64)


def cluster_name(cluster: str, *, row_id: str) -> tuple[str, str]:
    """What a row is drawn with; one without a cluster is one of its own."""
    return ("cluster", cluster) if cluster else ("row", row_id)


def is_one_cluster(clusters: Integers | None) -> bool:
    """All rows share something, so that nothing says how far other ones would lie."""
    return clusters is not None and not clusters.any()


def _unknown_losses(evidence: Evidence, *, role: str) -> str:
    unknown = [example for example in evidence.examples if not is_known(example)]
    if not unknown:
        return ""
    first = min(unknown, key=lambda example: example.row_id)
    cause = first.problem or ("no finite loss" if first.loss is None else f"a loss of {first.loss:g}")
    return (
        f"The loss of {len(unknown)} of {len(evidence.examples)} examples of the {role} is unknown ({cause})."
    )


def _other_tokens(candidate: Evidence, baseline: Evidence) -> str:
    """Losses are means over tokens: where the tokens differ, they measure different things."""
    num_other = sum(
        mine.num_answer_tokens != other.num_answer_tokens or mine.expected != other.expected
        for mine, other in _matched(candidate, baseline)
    )
    if not num_other:
        return ""
    return (
        f"The expected answers of {num_other} rows differ, or were cut into other tokens: "
        "losses of different tokenizers cannot be compared."
    )


def _too_few_clusters(candidate: Evidence, *, min_pairs: int) -> str:
    """Errors that are clustered are known from as many values as there are clusters."""
    names = {cluster_name(one.cluster, row_id=one.row_id) for one in candidate.examples}
    if len(names) >= min_pairs:
        return ""
    return f"{len(candidate.examples)} rows in {len(names)} clusters are too few; {min_pairs} are needed."


def _matched(candidate: Evidence, baseline: Evidence) -> list[tuple[ExampleResult, ExampleResult]]:
    by_row = {example.row_id: example for example in baseline.examples}
    return [
        (example, by_row[example.row_id])
        for example in sorted(candidate.examples, key=lambda example: example.row_id)
    ]


def _statistics(*, floor: float) -> dict[str, Statistic]:
    def loss_increase(means: Floats) -> Floats:
        change: Floats = means[..., CANDIDATE_LOSS] - means[..., BASELINE_LOSS]
        return change / np.maximum(means[..., BASELINE_LOSS], floor)

    def accuracy_change(means: Floats) -> Floats:
        change: Floats = means[..., CANDIDATE_CORRECT] - means[..., BASELINE_CORRECT]
        return change

    def perplexity_ratio(means: Floats) -> Floats:
        difference = means[..., CANDIDATE_LOSS] - means[..., BASELINE_LOSS]
        ratio: Floats = np.exp(np.minimum(difference, MAX_LOG_RATIO))
        return ratio

    return {
        "loss_increase": loss_increase,
        "accuracy_change": accuracy_change,
        "perplexity_ratio": perplexity_ratio,
    }
