"""`--set name=value`."""

import sys
from pathlib import Path

import pytest

from config.settings import Settings
from tasks.cli.main import main
from tasks.cli.pairs import parse_pairs
from workers.errors import RequestError

DIGITS = "9" * 5000
NESTED = "[" * 5000 + "]" * 5000


def test_values_are_json_where_they_can_be_read_as_it() -> None:
    told = parse_pairs(["num_epochs=2", "adapter=lora", 'schedule="cosine"', "name=a=b", "empty="])
    assert told == {"num_epochs": 2, "adapter": "lora", "schedule": "cosine", "name": "a=b", "empty": ""}


@pytest.mark.parametrize("pair", ["seed", "=3", ""])
def test_a_pair_needs_a_name_and_a_value(pair: str) -> None:
    with pytest.raises(RequestError, match="is not name=value"):
        parse_pairs([pair])


@pytest.mark.parametrize(("value", "reason"), [(DIGITS, "too many digits"), (NESTED, "nested too deeply")])
def test_a_value_that_no_parser_takes_is_refused_without_repeating_it(value: str, reason: str) -> None:
    with pytest.raises(
        RequestError, match=f"--set seed: its value of {len(value)} characters.*{reason}"
    ) as it:
        parse_pairs([f"seed={value}"])
    assert len(str(it.value)) < 200


@pytest.mark.parametrize("value", [DIGITS, NESTED])
@pytest.mark.parametrize("words", [["train", "--plan"], ["submit", "rows.jsonl"]])
def test_the_commands_say_it_in_a_sentence(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    value: str,
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    monkeypatch.setattr(sys, "argv", ["tandem", *words, "--set", f"seed={value}"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "--set seed: its value of" in capsys.readouterr().err
