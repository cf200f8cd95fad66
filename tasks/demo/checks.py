"""What the demo claims at its end, and whether each claim is true by the registry."""

from __future__ import annotations

from dataclasses import dataclass

from intelligence.statistics import mcnemar_p
from registry import judgements, lineage
from registry.records import Checkpoint, Deployment, ExampleResult, TrainingJob, Verdict
from registry.states import CheckpointState, Outcome, Priority
from registry.store import Transaction

SIGNIFICANCE = 0.001


@dataclass(frozen=True)
class Claim:
    """A sentence, and whether it is true."""

    text: str
    holds: bool


def is_settled(tx: Transaction) -> bool:
    """Every checkpoint is judged, the newest ranking knows all accepted ones, and its first is served."""
    suite, active = lineage.active_suite(tx), lineage.active_deployment(tx)
    if suite is None or active is None:
        return False
    checkpoints = tx.find(Checkpoint)
    verdicts = {verdict.checkpoint_id for verdict in tx.find(Verdict, suite_id=suite.id)}
    ranking = lineage.newest_ranking(tx, suite_id=suite.id)
    if ranking is None or not ranking.entries:
        return False
    judged = all(item.id in verdicts or item.origin == "base" for item in checkpoints)
    accepted = {item.id for item in checkpoints if item.state is CheckpointState.ACCEPTED}
    ranked = {entry.checkpoint_id for entry in ranking.entries}
    return judged and accepted == ranked and ranking.entries[0].checkpoint_id == active.checkpoint_id


def claims(tx: Transaction, *, ruined_id: str, served_by: str) -> list[Claim]:
    """The demo's claims."""
    return [
        _ran_in_order(tx),
        _accuracy_rose(tx),
        _ruined_was_caught(tx, ruined_id),
        _best_is_served(tx, served_by),
    ]


def _ran_in_order(tx: Transaction) -> Claim:
    jobs = sorted(tx.find(TrainingJob), key=lambda job: (job.started_at is None, job.started_at))
    order = [job.priority for job in jobs]
    by_submission = [job.priority for job in sorted(jobs, key=lambda job: job.submitted_at)]
    return Claim(
        f"Submitted {', '.join(by_submission)}; ran {', '.join(order)}.", holds=order == list(Priority)
    )


def _accuracy_rose(tx: Transaction) -> Claim:
    base, active = lineage.base_checkpoint(tx), lineage.active_deployment(tx)
    if base is None or active is None:
        return Claim("Accuracy rose: there is nothing to compare.", holds=False)
    first, last = (_examples(tx, checkpoint_id=name) for name in (base.id, active.checkpoint_id))
    if not first or not last:
        return Claim("Accuracy rose: there is nothing to compare.", holds=False)
    correct = {example.row_id: example.is_correct for example in first}
    gained = sum(example.is_correct and not correct[example.row_id] for example in last)
    lost = sum(correct[example.row_id] and not example.is_correct for example in last)
    p = mcnemar_p(gained, lost)
    before = sum(correct.values()) / len(correct)
    after = sum(example.is_correct for example in last) / len(last)
    text = f"Accuracy rose from {before:.0%} to {after:.0%} (n = {len(last)}, McNemar exact p = {p:.1g})."
    return Claim(text, holds=after > before and p < SIGNIFICANCE)


def _examples(tx: Transaction, *, checkpoint_id: str) -> tuple[ExampleResult, ...]:
    suite = lineage.active_suite(tx)
    if suite is None:
        return ()
    evaluation = lineage.answered_evaluation(tx, checkpoint_id=checkpoint_id, suite_id=suite.id)
    return () if evaluation is None else judgements.examples_of(tx, evaluation_id=evaluation.id)


def _ruined_was_caught(tx: Transaction, ruined_id: str) -> Claim:
    ruined = tx.seek(Checkpoint, ruined_id)
    verdicts = tx.find(Verdict, checkpoint_id=ruined_id)
    outcome = verdicts[0].outcome if verdicts else Outcome.UNKNOWN
    was_served = bool(ruined) and bool(_deployments_of(tx, ruined_id))
    holds = ruined is not None and ruined.state is CheckpointState.QUARANTINED and not was_served
    return Claim(f"The ruined checkpoint {ruined_id} was caught ({outcome}) and never served.", holds=holds)


def _deployments_of(tx: Transaction, checkpoint_id: str) -> list[Deployment]:
    return tx.find(Deployment, checkpoint_id=checkpoint_id)


def _best_is_served(tx: Transaction, served_by: str) -> Claim:
    active, suite = lineage.active_deployment(tx), lineage.active_suite(tx)
    ranking = None if suite is None else lineage.newest_ranking(tx, suite_id=suite.id)
    best = ranking.entries[0].checkpoint_id if ranking and ranking.entries else None
    holds = active is not None and active.checkpoint_id == best and active.id == served_by
    return Claim(f"The server answers with {served_by}, the best-ranked checkpoint {best}.", holds=holds)
