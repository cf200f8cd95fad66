import pytest

from intelligence.contamination import ContaminationLimits, Overlap, find_overlaps
from registry.rows import ChatMessage, ChatRow

LIMITS = ContaminationLimits()
STORY = "one morning the old miller walked down to the river and found seven silver coins"


def row(question: str, answer: str = "yes", system: str = "") -> ChatRow:
    turns = [("system", system)] if system else []
    turns += [("user", question), ("assistant", answer)]
    return ChatRow(messages=tuple(ChatMessage.model_validate({"role": r, "content": c}) for r, c in turns))


def overlaps(training: list[ChatRow], suite: list[ChatRow], **limits: float) -> list[Overlap]:
    return find_overlaps(training, suite=suite, limits=ContaminationLimits.model_validate(limits))


def test_the_same_question_is_named_whatever_its_answer() -> None:
    found = overlaps([row("free"), row("held ", "no")], [row("held")])
    assert [(one.row_number, one.is_whole_question) for one in found] == [(2, True)]
    assert "row 2 (the whole question 'held '" in str(found[0])


def test_a_run_of_thirteen_words_is_named_whatever_its_case_and_punctuation() -> None:
    found = overlaps([row("free"), row(f"Tell me: {STORY.upper()}!")], [row(f"{STORY}, who was it?")])
    assert [one.row_number for one in found] == [2]
    assert found[0].shared in STORY
    assert len(found[0].shared.split()) == LIMITS.num_words


def test_twelve_words_are_no_finding() -> None:
    assert overlaps([row(" ".join(STORY.split()[:12]))], [row(STORY)]) == []


def test_the_wording_of_a_task_says_nothing_of_one_row() -> None:
    suite = [row(f"{STORY} {number}") for number in (1, 2)]
    assert overlaps([row(f"{STORY} 3")], suite) == []
    many = [row(f"{STORY} {number}") for number in range(10, 21)]
    assert overlaps(many, [row(f"{STORY} 1")]) == []
    assert len(overlaps(many[:10], [row(f"{STORY} 1")])) == 10


def test_a_row_repeated_in_training_is_not_common_for_that() -> None:
    assert len(overlaps([row(f"Look: {STORY}")] * 50, [row(STORY)])) == 50


def test_a_shared_system_prompt_is_no_finding() -> None:
    assert overlaps([row("free", system=STORY)], [row("held", system=STORY)]) == []


@pytest.mark.parametrize(("max_overlap", "num_found"), [(0.0, 1), (0.4, 1), (0.9, 0)])
def test_a_share_of_the_runs_may_be_allowed(max_overlap: float, num_found: int) -> None:
    suite = [row(f"{STORY} a b c d e f")]
    found = overlaps([row(f"{STORY} a b")], suite, max_overlap=max_overlap)
    assert len(found) == num_found
