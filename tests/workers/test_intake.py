import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from config.settings import Settings
from intelligence.contamination import ContaminationLimits
from intelligence.errors import UnknownScorer
from registry.errors import DatasetError, ManifestError
from registry.files import sha256_file
from registry.manifests import verify
from registry.rows import read_rows
from registry.testing import START, make_suite
from workers import intake


def write_rows(path: Path, *words: str) -> Path:
    rows = [{"prompt": word, "completion": word[::-1]} for word in words]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_model(directory: Path) -> Path:
    directory.mkdir()
    for name in ("config.json", "tokenizer_config.json", "model.safetensors", "notes.md", "evil.bin"):
        (directory / name).write_text(name)
    return directory


def test_a_relative_name_is_found_in_the_inbox_then_in_the_working_directory(settings: Settings) -> None:
    here = write_rows(Path("data.jsonl"), "abc").resolve()
    assert intake.locate("data.jsonl", settings=settings) == here
    inbox = write_rows(settings.paths.inbox / "data.jsonl", "abc")
    assert intake.locate("data.jsonl", settings=settings) == inbox


@pytest.mark.parametrize("name", ["/etc/passwd", "../../../../etc/passwd", "~root/x.jsonl"])
def test_a_path_outside_the_allowed_roots_is_refused_with_the_remedy(settings: Settings, name: str) -> None:
    with pytest.raises(DatasetError, match=r"outside the allowed roots.*TANDEM_ALLOWED_ROOTS"):
        intake.locate(name, settings=settings)


def test_a_link_that_leads_outside_is_refused(settings: Settings) -> None:
    (settings.paths.inbox / "link.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(DatasetError, match="outside|does not exist"):
        intake.locate("link.jsonl", settings=settings)


def test_a_missing_file_is_said_with_where_it_was_looked_for(settings: Settings) -> None:
    with pytest.raises(DatasetError, match="none.jsonl does not exist"):
        intake.locate("none.jsonl", settings=settings)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_takes_nothing_is_no_fault_of_the_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = write_rows(settings.paths.inbox / "a.jsonl", "abc")
    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        intake.take_dataset(path, settings=settings, now=START)
    assert list(settings.paths.datasets.iterdir()) == []


def test_a_file_that_may_not_be_read_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    path = write_rows(settings.paths.inbox / "a.jsonl", "abc")
    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(DatasetError, match="cannot be copied to .*: Permission denied"):
        intake.take_dataset(path, settings=settings, now=START)


def test_a_dataset_is_copied_and_named_by_its_content(settings: Settings) -> None:
    path = write_rows(settings.paths.inbox / "a.jsonl", "abc", "def")
    first = intake.take_dataset(path, settings=settings, now=START)
    other = write_rows(settings.paths.inbox / "b.jsonl", "abc", "def")
    second = intake.take_dataset(other, settings=settings, now=START)
    assert first.id == second.id
    assert first.num_rows == 2
    path.write_text("changed")
    assert len(Path(first.path).read_text().splitlines()) == 2


def test_a_bad_row_leaves_nothing_behind(settings: Settings) -> None:
    path = settings.paths.inbox / "bad.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(DatasetError, match="bad.jsonl, line 2"):
        intake.take_dataset(path, settings=settings, now=START)
    assert list(settings.paths.datasets.iterdir()) == []


def test_a_training_row_that_the_suite_asks_is_refused_by_number(settings: Settings) -> None:
    suite_path = write_rows(settings.paths.suites / "suite.jsonl", "held")
    dataset = intake.take_dataset(
        write_rows(settings.paths.inbox / "a.jsonl", "free", "held"), settings=settings, now=START
    )
    with pytest.raises(
        DatasetError, match=r"a: 1 rows are also in the validation suite .*row 2 \(the whole question"
    ):
        intake.refuse_overlap(dataset, suite=make_suite(path=str(suite_path)))


def test_a_suite_that_asks_twice_is_refused(settings: Settings) -> None:
    path = write_rows(settings.paths.inbox / "s.jsonl", "abc", "abc")
    with pytest.raises(DatasetError, match="stands in the suite 2 times"):
        intake.take_suite(path, name="s", settings=settings, now=START)


def test_a_suite_too_small_to_judge_by_is_refused(settings: Settings) -> None:
    path = write_rows(settings.paths.inbox / "s.jsonl", "abc", "def")
    with pytest.raises(DatasetError, match=r"has 2 rows; a verdict needs 30.*MIN_PAIRS"):
        intake.take_suite(path, name="s", settings=settings, now=START)


def test_a_suite_without_an_answer_is_refused(settings: Settings) -> None:
    path = settings.paths.inbox / "s.jsonl"
    path.write_text('{"prompt": "abc", "completion": ""}\n')
    with pytest.raises(DatasetError, match="is empty"):
        intake.take_suite(path, name="s", settings=settings, now=START)


def test_a_model_is_copied_without_what_is_no_model_and_verifies(settings: Settings, tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    intake.take_model(source, into=tmp_path / "kept", manifest_fields={"step": 0}, now=START)
    assert sorted(verify(tmp_path / "kept").files) == [
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
    ]


def test_a_directory_of_pickled_weights_is_no_model(tmp_path: Path) -> None:
    source = write_model(tmp_path / "model")
    (source / "model.safetensors").unlink()
    with pytest.raises(ManifestError, match=r"safetensors missing. Pickled weights \(evil.bin\)"):
        intake.check_model_directory(source)
    with pytest.raises(ManifestError, match="is not a directory"):
        intake.check_model_directory(tmp_path / "nothing")


def write_suite(settings: Settings, *rows: dict[str, object]) -> Path:
    """These rows, and as many others as a suite needs."""
    path = settings.paths.inbox / "suite.jsonl"
    others = [{"prompt": f"say {number}", "completion": str(number)} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *others]))
    return path


def test_the_suites_scorer_is_written_into_the_rows_that_name_none(settings: Settings) -> None:
    path = write_suite(settings, {"prompt": "a", "completion": "[1]", "scorer": "json", "id": "own"})
    suite = intake.take_suite(path, name="s", settings=settings, now=START, scorer="numeric")
    plain = intake.take_suite(path, name="s", settings=settings, now=START)
    first, *others = read_rows(Path(suite.path))
    assert (first.scorer, first.id) == ("json", "own")
    assert {row.scorer for row in others} == {"numeric"}
    assert suite.id != plain.id
    assert sha256_file(Path(suite.path)) == suite.content_sha256


def test_an_unknown_scorer_is_refused_with_the_names_there_are(settings: Settings) -> None:
    path = write_suite(settings, {"prompt": "a", "completion": "b", "scorer": "numerc"})
    with pytest.raises(UnknownScorer, match=r"no scorer 'numerc'.*exact, json, numeric, reasoning-gym"):
        intake.take_suite(path, name="s", settings=settings, now=START)
    with pytest.raises(UnknownScorer, match="no scorer 'best'"):
        intake.take_suite(write_suite(settings), name="s", settings=settings, now=START, scorer="best")


def test_an_answer_that_its_own_scorer_cannot_accept_is_refused(settings: Settings) -> None:
    path = write_suite(settings, {"prompt": "a", "completion": "many", "scorer": "numeric"})
    with pytest.raises(DatasetError, match=r"suite.jsonl, row 1: .*'many' holds no number"):
        intake.take_suite(path, name="s", settings=settings, now=START)


def test_rows_of_one_id_are_refused(settings: Settings) -> None:
    rows = [{"prompt": word, "completion": "b", "id": "same"} for word in ("a", "c")]
    with pytest.raises(DatasetError, match="row 1: 2 rows have the id 'same'"):
        intake.take_suite(write_suite(settings, *rows), name="s", settings=settings, now=START)


def test_an_empty_suite_is_refused(settings: Settings) -> None:
    path = settings.paths.inbox / "s.jsonl"
    path.write_text("\n")
    with pytest.raises(DatasetError, match="has no rows"):
        intake.take_suite(path, name="s", settings=settings, now=START)


def test_training_rows_that_share_a_run_of_words_are_refused_by_number(settings: Settings) -> None:
    story = "one morning the old miller walked down to the river and found seven silver coins"
    suite_path = write_rows(settings.paths.suites / "suite.jsonl", story)
    path = write_rows(settings.paths.inbox / "a.jsonl", "free", f"Retell: {story}")
    dataset = intake.take_dataset(path, settings=settings, now=START)
    suite = make_suite(path=str(suite_path))
    with pytest.raises(DatasetError, match=r"1 rows are also .*row 2 \(the words '.*seven silver coins"):
        intake.refuse_overlap(dataset, suite=suite)
    assert [one.row_number for one in intake.overlaps_with(path, suite=suite)] == [2]
    lenient = ContaminationLimits(max_overlap=1.0)
    intake.refuse_overlap(dataset, suite=suite, limits=lenient)


def test_a_suite_whose_rows_share_a_few_texts_counts_those_and_not_the_rows(settings: Settings) -> None:
    rows = [{"prompt": f"{n}", "completion": "b", "cluster": f"text-{n % 4}"} for n in range(60)]
    path = settings.paths.inbox / "suite.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DatasetError, match="has 60 rows in 4 clusters; a verdict needs 30"):
        intake.take_suite(path, name="s", settings=settings, now=START)
