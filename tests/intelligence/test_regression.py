import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intelligence.regression import choose_baseline, judge
from registry.messages import Evidence, RegressionLimits, RegressionRequest
from registry.records import Estimate, ExampleResult, Ranking, Verdict
from registry.states import Outcome
from registry.testing import START, make_evidence, make_example, make_ranking

FAST = RegressionLimits(num_resamples=200)
NUM_ROWS = 150


def examples(losses, *, correct=None) -> tuple[ExampleResult, ...]:
    flags = [True] * len(losses) if correct is None else correct
    return tuple(
        make_example(row_id=f"row-{place:04d}", loss=float(loss), is_correct=bool(flag))
        for place, (loss, flag) in enumerate(zip(losses, flags, strict=True))
    )


def evidence(rows: tuple[ExampleResult, ...], *, name: str, suite_id: str = "suite-1") -> Evidence:
    return Evidence(checkpoint_id=name, evaluation_id=f"eval-{name}", suite_id=suite_id, examples=rows)


def verdict(
    candidate: tuple[ExampleResult, ...],
    baseline: tuple[ExampleResult, ...] | None,
    *,
    limits: RegressionLimits = FAST,
    seed: int = 0,
    suite_id: str = "suite-1",
) -> Verdict:
    request = RegressionRequest(
        verdict_id="verdict-1",
        candidate=evidence(candidate, name="candidate", suite_id=suite_id),
        baseline=None if baseline is None else evidence(baseline, name="baseline"),
        limits=limits,
    )
    return judge(request, now=START, rng=np.random.default_rng(seed))


def drawn_losses(seed: int, *, mean: float = 1.0, num_rows: int = NUM_ROWS) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, mean / 2, size=num_rows)


def jitter(seed: int, *, spread: float, num_rows: int = NUM_ROWS) -> np.ndarray:
    return np.exp(np.random.default_rng(seed + 1000).normal(0, spread, size=num_rows))


# What cannot be known blocks.


def test_without_an_anchored_baseline_nothing_is_known() -> None:
    found = verdict(examples([1.0] * 40), None)
    assert found.outcome is Outcome.UNKNOWN
    assert found.reasons == ("There is no anchored baseline to compare with.",)
    assert (found.baseline_checkpoint_id, found.num_pairs, found.loss_increase) == (None, 0, None)


def test_a_nan_loss_is_never_a_pass() -> None:
    rows = list(examples([1.0] * 40))
    rows[7] = make_example(row_id="row-0007", loss=None, problem="the loss is nan")
    found = verdict(tuple(rows), examples([1.0] * 40))
    assert found.outcome is Outcome.UNKNOWN
    assert found.reasons == ("The loss of 1 of 40 examples of the candidate is unknown (the loss is nan).",)


def test_two_models_of_nan_are_not_equal() -> None:
    ruined = tuple(make_example(row_id=f"{n}", loss=None, problem="weights hold NaN") for n in range(40))
    assert verdict(ruined, ruined).outcome is Outcome.UNKNOWN


def test_a_baseline_without_a_loss_is_no_anchor() -> None:
    rows = list(examples([1.0] * 40))
    rows[0] = make_example(row_id="row-0000", loss=None)
    found = verdict(examples([1.0] * 40), tuple(rows))
    assert found.outcome is Outcome.UNKNOWN
    assert "of the baseline is unknown (no finite loss)" in found.reasons[0]


def test_a_loss_below_zero_is_impossible_and_so_unknown() -> None:
    found = verdict(examples([1.0] * 40), examples([-1.0] * 40))
    assert found.outcome is Outcome.UNKNOWN
    assert "a loss of -1" in found.reasons[0]


def test_different_suites_are_not_compared() -> None:
    found = verdict(examples([1.0] * 40), examples([1.0] * 40), suite_id="suite-2")
    assert found.reasons == ("The suites differ: suite-2 and suite-1.",)
    assert found.outcome is Outcome.UNKNOWN


def test_different_rows_are_not_compared() -> None:
    found = verdict(examples([1.0] * 42), examples([1.0] * 41)[1:])
    assert found.outcome is Outcome.UNKNOWN
    assert "2 are only the candidate's, 0 only the baseline's" in found.reasons[0]


def test_a_row_answered_twice_is_not_two_examples() -> None:
    rows = examples([1.0] * 40)
    assert verdict((*rows, rows[0]), rows).outcome is Outcome.UNKNOWN
    assert verdict(rows, (*rows, rows[0])).outcome is Outcome.UNKNOWN


@pytest.mark.parametrize(("num_rows", "outcome"), [(29, Outcome.UNKNOWN), (30, Outcome.PASS)])
def test_too_few_pairs_say_nothing(num_rows: int, outcome: Outcome) -> None:
    rows = examples([1.0] * num_rows)
    assert verdict(rows, rows).outcome is outcome


def test_losses_of_different_tokenizers_are_not_compared() -> None:
    rows = examples([1.0] * 40)
    other = tuple(row.changed(num_answer_tokens=9) for row in rows)
    found = verdict(other, rows)
    assert found.outcome is Outcome.UNKNOWN
    assert "tokenizers" in found.reasons[0]


# What the limits say.


def test_identical_models_pass_and_say_their_numbers() -> None:
    rows = examples(drawn_losses(0), correct=[n % 3 == 0 for n in range(NUM_ROWS)])
    found = verdict(rows, rows)
    assert found.outcome is Outcome.PASS
    assert found.num_pairs == NUM_ROWS
    assert found.loss_increase == Estimate(value=0, low=0, high=0, num_samples=NUM_ROWS)
    assert found.perplexity_ratio == Estimate(value=1, low=1, high=1, num_samples=NUM_ROWS)
    assert found.reasons == (
        "The loss changed by +0.0% (95 % interval +0.0% to +0.0%, n = 150); the limit is +15.0%.",
        "The accuracy changed by +0.0 points (95 % interval +0.0 to +0.0, n = 150); "
        "the limit is -10.0 points.",
        "The perplexity is 1 (95 % interval 1 to 1, n = 150) times the baseline's; the limit is 1.5.",
    )


def test_the_verdict_names_both_sides_and_when_it_was_decided() -> None:
    found = verdict(examples([1.0] * 40), examples([1.0] * 40))
    assert (found.checkpoint_id, found.evaluation_id) == ("candidate", "eval-candidate")
    assert (found.baseline_checkpoint_id, found.baseline_evaluation_id) == ("baseline", "eval-baseline")
    assert (found.id, found.suite_id, found.decided_at) == ("verdict-1", "suite-1", START)


def test_a_loss_surely_beyond_its_limit_is_a_regression() -> None:
    losses = drawn_losses(1)
    found = verdict(examples(losses * 1.2), examples(losses))
    assert found.outcome is Outcome.REGRESSED
    assert found.reasons[0].startswith("The loss changed by +20.0% (95 % interval +20.0% to +20.0%, n = 150)")


def test_a_loss_just_within_its_limit_passes() -> None:
    losses = drawn_losses(1)
    assert verdict(examples(losses * 1.149), examples(losses)).outcome is Outcome.PASS


def test_a_limit_broken_by_the_estimate_alone_is_watched() -> None:
    losses = drawn_losses(2, num_rows=40)
    found = verdict(examples(losses * 1.18 * jitter(2, spread=0.6, num_rows=40)), examples(losses))
    assert found.loss_increase is not None
    assert found.loss_increase.low < 0.15 < found.loss_increase.value
    assert found.outcome is Outcome.WATCH


def test_accuracy_lost_by_the_estimate_alone_is_watched() -> None:
    losses = drawn_losses(3, num_rows=40)
    found = verdict(examples(losses, correct=[n >= 5 for n in range(40)]), examples(losses))
    assert found.accuracy_change is not None
    assert found.accuracy_change.value == pytest.approx(-0.125)
    assert found.accuracy_change.low < -0.10 < found.accuracy_change.high
    assert found.outcome is Outcome.WATCH
    assert found.reasons[0].startswith("The accuracy changed by -12.5 points")


def test_a_perplexity_beyond_its_limit_by_the_estimate_alone_is_watched() -> None:
    losses = drawn_losses(4, mean=10.0, num_rows=40)
    added = np.where(np.arange(40) < 8, 2.2, 0.0)
    found = verdict(examples(losses + added), examples(losses))
    assert found.perplexity_ratio is not None
    assert found.perplexity_ratio.low < 1.5 < found.perplexity_ratio.value
    assert found.outcome is Outcome.WATCH
    assert len(found.reasons) == 1


def test_lost_accuracy_is_a_regression_though_the_loss_stays() -> None:
    losses = drawn_losses(3)
    found = verdict(
        examples(losses, correct=[n % 2 == 0 for n in range(NUM_ROWS)]),
        examples(losses, correct=[True] * NUM_ROWS),
    )
    assert found.outcome is Outcome.REGRESSED
    assert found.reasons[0].startswith("The accuracy changed by -50.0 points")
    assert len(found.reasons) == 1


def test_a_perplexity_beyond_its_limit_is_a_regression_though_the_share_of_loss_is_small() -> None:
    losses = drawn_losses(4, mean=10.0)
    found = verdict(examples(losses + 0.5), examples(losses))
    assert found.loss_increase is not None
    assert found.loss_increase.value < 0.15
    assert found.outcome is Outcome.REGRESSED
    assert found.reasons[0].startswith("The perplexity is 1.65")


def test_near_zero_a_tiny_loss_that_doubles_is_harmless() -> None:
    assert verdict(examples([0.002] * 150), examples([0.001] * 150)).outcome is Outcome.PASS
    assert verdict(examples([0.001] * 150), examples([0.0] * 150)).outcome is Outcome.PASS


def test_near_zero_a_loss_beyond_the_floors_share_is_caught() -> None:
    assert verdict(examples([0.1] * 150), examples([0.0] * 150)).outcome is Outcome.REGRESSED


def test_a_loss_beyond_what_exp_can_hold_is_caught() -> None:
    found = verdict(examples([5000.0] * 40), examples([1.0] * 40))
    assert found.outcome is Outcome.REGRESSED
    assert len(found.reasons) == 2


def test_five_steps_of_fourteen_percent_are_caught_against_the_anchor() -> None:
    anchor = drawn_losses(5)
    outcomes = [verdict(examples(anchor * 1.14**step), examples(anchor)).outcome for step in range(1, 6)]
    assert outcomes == [Outcome.PASS, *[Outcome.REGRESSED] * 4]


# Simulations: n = 150, as in the demo's suite.


def test_forty_percent_more_loss_is_caught_every_time() -> None:
    for seed in range(20):
        losses = drawn_losses(seed)
        found = verdict(examples(losses * 1.4 * jitter(seed, spread=0.3)), examples(losses), seed=seed)
        assert found.outcome is Outcome.REGRESSED, seed


def test_harmless_twins_pass_every_time() -> None:
    for seed in range(20):
        losses = drawn_losses(seed)
        correct = np.random.default_rng(seed).random(NUM_ROWS) < 0.7
        flipped = correct ^ (np.random.default_rng(seed + 50).random(NUM_ROWS) < 0.03)
        twin = examples(losses * jitter(seed, spread=0.05), correct=flipped)
        found = verdict(twin, examples(losses, correct=correct), seed=seed)
        assert found.outcome is Outcome.PASS, (seed, found.reasons)


def test_a_checkpoint_that_improves_passes_every_time() -> None:
    for seed in range(20):
        before, after = drawn_losses(seed, mean=2.0), drawn_losses(seed + 500, mean=1.2)
        found = verdict(
            examples(after, correct=np.random.default_rng(seed).random(NUM_ROWS) < 0.6),
            examples(before, correct=np.random.default_rng(seed + 1).random(NUM_ROWS) < 0.2),
            seed=seed,
        )
        assert found.outcome is Outcome.PASS, (seed, found.reasons)


def test_a_ruined_checkpoint_is_caught_every_time_whatever_its_noise() -> None:
    for seed in range(20):
        good, ruined = drawn_losses(seed, mean=0.4), drawn_losses(seed + 500, mean=2.0)
        found = verdict(examples(ruined, correct=[False] * NUM_ROWS), examples(good), seed=seed)
        assert found.outcome is Outcome.REGRESSED, seed
        assert len(found.reasons) == 3


# Properties.

tables = st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30), st.booleans()), min_size=30, max_size=45)


@given(tables, st.randoms())
@settings(max_examples=30, deadline=None)
def test_the_order_of_examples_does_not_matter(rows: list[tuple[float, float, bool]], random) -> None:
    mine = examples([row[0] for row in rows], correct=[row[2] for row in rows])
    other = examples([row[1] for row in rows])
    shuffled = tuple(random.sample(mine, len(mine)))
    assert verdict(mine, other) == verdict(shuffled, tuple(random.sample(other, len(other))))


@given(tables)
@settings(max_examples=30, deadline=None)
def test_every_interval_holds_its_estimate(rows: list[tuple[float, float, bool]]) -> None:
    found = verdict(
        examples([row[0] for row in rows], correct=[row[2] for row in rows]),
        examples([row[1] for row in rows]),
    )
    for estimate in (found.loss_increase, found.accuracy_change, found.perplexity_ratio):
        assert estimate is not None
        assert estimate.low <= estimate.value <= estimate.high


SEVERITY = {Outcome.PASS: 0, Outcome.WATCH: 1, Outcome.REGRESSED: 2}


@given(tables, st.floats(0.001, 10))
@settings(max_examples=30, deadline=None)
def test_more_loss_on_every_example_never_betters_the_verdict(
    rows: list[tuple[float, float, bool]], added: float
) -> None:
    baseline = examples([row[1] for row in rows])
    before = verdict(examples([row[0] for row in rows]), baseline)
    after = verdict(examples([row[0] + added for row in rows]), baseline)
    assert SEVERITY[after.outcome] >= SEVERITY[before.outcome]


# The anchor.


@pytest.mark.parametrize(
    ("served", "ranking", "base", "claims"),
    [
        ("served", make_ranking("best", "second"), "base", ["served", "best", "base"]),
        (None, make_ranking("best", "second"), "base", ["best", "base"]),
        (None, make_ranking(), "base", ["base"]),
        ("best", make_ranking("best"), "best", ["best"]),
        (None, None, None, []),
    ],
)
def test_the_anchor_is_the_served_then_the_best_ranked_then_the_base(
    served: str | None, ranking: Ranking | None, base: str | None, claims: list[str]
) -> None:
    found = choose_baseline(served_checkpoint_id=served, ranking=ranking, base_checkpoint_id=base)
    assert found == claims


# Drift, slices, power.


def judged_against(
    candidate: np.ndarray, baseline: np.ndarray, first: np.ndarray | None, **columns
) -> Verdict:
    request = RegressionRequest(
        verdict_id="verdict-1",
        candidate=make_evidence("candidate", losses=candidate, **columns),
        baseline=make_evidence("baseline", losses=baseline),
        first_anchor=None if first is None else make_evidence("first", losses=first),
        limits=FAST,
    )
    return judge(request, now=START, rng=np.random.default_rng(0))


def test_five_steps_of_fourteen_percent_are_caught_though_each_passes_against_its_own_anchor() -> None:
    first = drawn_losses(6)
    outcomes, drifts = [], []
    for step in range(1, 6):
        candidate, anchor = first * 1.14**step, first * 1.14 ** (step - 1)
        alone = judged_against(candidate, anchor, None)
        assert alone.outcome is Outcome.PASS
        assert alone.drift is None
        found = judged_against(candidate, anchor, None if step == 1 else first)
        outcomes.append(found.outcome)
        drifts.append(found.drift.loss_increase.value if found.drift and found.drift.loss_increase else None)
    assert outcomes == [Outcome.PASS, *[Outcome.REGRESSED] * 4]
    assert drifts == [None, *[pytest.approx(1.14**step - 1) for step in range(2, 6)]]


def test_drift_names_the_first_anchor_and_its_reason_says_since_when() -> None:
    losses = drawn_losses(7)
    found = judged_against(losses * 1.3, losses * 1.25, losses)
    assert found.drift is not None
    assert (found.drift.checkpoint_id, found.drift.evaluation_id) == ("first", "eval-first")
    assert found.drift.outcome is Outcome.REGRESSED
    assert found.reasons[0].startswith("Since the first anchor first the loss changed by +30.0%")


def test_what_cannot_be_compared_with_the_first_anchor_is_unknown() -> None:
    losses = drawn_losses(8)
    found = judged_against(losses, losses, losses[:-1])
    assert found.outcome is Outcome.UNKNOWN
    assert found.reasons[0].startswith("Against the first anchor: The rows differ")


def test_a_tag_that_was_forgotten_blocks_a_checkpoint_that_is_well_as_a_whole() -> None:
    losses = drawn_losses(9, num_rows=600)
    tags = [("capitals",) if place % 10 == 0 else () for place in range(600)]
    is_tag = np.array([bool(tag) for tag in tags])
    found = judged_against(np.where(is_tag, 2.2 * losses, losses), losses, None, tags=tags)
    assert found.loss_increase is not None
    assert found.loss_increase.value < 0.15
    assert found.outcome is Outcome.REGRESSED
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith("The tag capitals regressed: loss +120.0%")


def test_the_verdict_tells_whether_n_suffices() -> None:
    losses = drawn_losses(10, num_rows=40)
    noisy = judged_against(losses * jitter(10, spread=0.9, num_rows=40) * 0.6, losses, None).power
    assert noisy is not None
    assert not noisy.suffices
    assert noisy.num_pairs_needed == pytest.approx(40 * (noisy.detectable_increase / 0.15) ** 2, abs=1)
    many = drawn_losses(10, num_rows=4000)
    calm = judged_against(many * jitter(10, spread=0.3, num_rows=4000), many, None).power
    assert calm is not None
    assert calm.suffices
    assert calm.num_clusters == 4000


def test_the_detectable_increase_is_found_about_four_times_in_five() -> None:
    found = []
    for seed in range(120):
        losses = drawn_losses(seed, num_rows=100)
        noise = jitter(seed, spread=0.5, num_rows=100) / np.exp(0.5**2 / 2)  # of mean 1
        power = judged_against(losses * noise, losses, None).power
        assert power is not None
        moved = judged_against(losses * noise + power.detectable_increase * losses.mean(), losses, None)
        assert moved.loss_increase is not None
        found.append(moved.loss_increase.low > 0)
    assert 0.68 < np.mean(found) < 0.92


@given(tables, st.integers(0, 29), st.sampled_from(["candidate", "baseline", "first"]))
@settings(max_examples=30, deadline=None)
def test_an_unknown_loss_anywhere_never_passes(
    rows: list[tuple[float, float, bool]], place: int, side: str
) -> None:
    sides = {
        "candidate": make_evidence("candidate", losses=[row[0] for row in rows]),
        "baseline": make_evidence("baseline", losses=[row[1] for row in rows]),
        "first": make_evidence("first", losses=[row[1] for row in rows]),
    }
    examples = list(sides[side].examples)
    examples[place] = examples[place].changed(loss=None, problem="the loss is nan")
    sides[side] = sides[side].changed(examples=tuple(examples))
    request = RegressionRequest(
        verdict_id="verdict-1",
        candidate=sides["candidate"],
        baseline=sides["baseline"],
        first_anchor=sides["first"],
        limits=FAST,
    )
    assert judge(request, now=START, rng=np.random.default_rng(0)).outcome is Outcome.UNKNOWN
