from importlib.metadata import EntryPoint

import pytest
import reasoning_gym

from intelligence import scorers
from intelligence.errors import UnknownScorer
from registry.judging import same_text
from registry.rows import ChatRow
from registry.testing import make_example


def row(expected: str, **fields: object) -> ChatRow:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": expected}]
    return ChatRow.model_validate({"messages": turns, **fields})


def explode(answer: str, *, expected: str, options: object) -> bool:
    raise ZeroDivisionError("by nought")


def hesitate(answer: str, *, expected: str, options: object) -> str:
    return "perhaps"


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint(name=name, value=f"plugin:{name}", group=scorers.GROUP) for name in ("explode", "hesitate")
    ]
    functions = {"explode": explode, "hesitate": hesitate}
    monkeypatch.setattr(scorers, "entry_points", lambda group: points)
    monkeypatch.setattr(EntryPoint, "load", lambda point: functions[point.name])


def test_without_a_name_the_text_itself_is_expected() -> None:
    assert scorers.judge(row("abc"), " abc\n").is_correct
    assert not scorers.judge(row("abc"), "ABC").is_correct
    assert scorers.judge(row("abc"), "abc") == same_text(row("abc"), "abc")


@pytest.mark.parametrize("name", list(scorers.BUILT_IN))
def test_an_empty_reply_is_wrong_and_an_empty_expected_answer_is_unknown(name: str) -> None:
    assert not scorers.judge(row("1", scorer=name), " ").is_correct
    unknown = scorers.judge(row(" ", scorer=name), " ")
    assert (unknown.is_correct, unknown.problem) == (False, "the row has no expected answer")


@pytest.mark.usefixtures("plugins")
def test_a_scorer_that_raises_or_does_not_decide_makes_the_example_unknown() -> None:
    raised = scorers.judge(row("1", scorer="explode"), "1")
    assert (raised.is_correct, raised.problem) == (
        False,
        "scorer 'explode' failed: ZeroDivisionError: by nought",
    )
    undecided = scorers.judge(row("1", scorer="hesitate"), "1")
    assert not undecided.is_correct
    assert "'perhaps', which is neither true nor false" in undecided.problem


@pytest.mark.usefixtures("plugins")
def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UnknownScorer, match=r"no scorer 'numerik'. Did you mean 'numeric'\?.*exact, explode"):
        scorers.find("numerik")


def test_reasoning_gyms_own_verifier_judges_its_own_entries() -> None:
    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=3)[0]
    options = {"dataset": "chain_sum", "metadata": {}}
    one = row(entry["answer"], scorer="reasoning-gym", scoring=options)
    assert scorers.judge(one, entry["answer"]).is_correct
    assert not scorers.judge(one, "no").is_correct
    nobody = row("1", scorer="reasoning-gym", scoring={"dataset": "nobody"})
    assert "nobody" in scorers.judge(nobody, "1").problem


def test_a_stored_reply_is_judged_anew() -> None:
    stored = make_example(expected="1000", answer="1,000", is_correct=False)
    again = scorers.rejudged(stored, row=row("1000", scorer="numeric"))
    assert (again.is_correct, again.scorer) == (True, "numeric")


def test_a_reply_that_was_cut_off_or_broke_stays_wrong() -> None:
    cut = make_example(expected="1", answer="1", is_correct=False, finish_reason="length")
    assert not scorers.rejudged(cut, row=row("1")).is_correct
    broken = make_example(expected="1", answer="1", is_correct=False, loss=None, problem="the loss is nan")
    assert scorers.rejudged(broken, row=row("1")).problem == "the loss is nan"
