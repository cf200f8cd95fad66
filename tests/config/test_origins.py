from pathlib import Path

import pytest

from config.origins import Origin, origin_of

RATE = "TANDEM_TRAINING__HYPERPARAMETERS__LEARNING_RATE"
EPOCHS = "TANDEM_TRAINING__HYPERPARAMETERS__NUM_EPOCHS"
SEED = "TANDEM_TRAINING__HYPERPARAMETERS__SEED"
THREADS = "TANDEM_TRAINING__NUM_THREADS"


@pytest.fixture
def file(empty_directory: Path) -> Path:
    path = empty_directory / "tandem.toml"
    path.write_text("[training]\nnum_threads = 2\n[training.hyperparameters]\nnum_epochs = 3\n")
    return path


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TANDEM_TRAINING__HYPERPARAMETERS", '{"seed": 3}'),
        ("TANDEM_TRAINING", '{"hyperparameters": {"seed": 3}}'),
        ("tandem_training__hyperparameters__seed", "3"),
    ],
)
def test_a_variable_names_what_stands_in_it_and_nothing_beside(
    file: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert origin_of(SEED) is Origin.ENVIRONMENT
    assert origin_of(EPOCHS) is Origin.FILE
    assert origin_of(THREADS) is Origin.FILE
    assert origin_of(RATE) is Origin.DEFAULT


def test_a_line_of_dotenv_names_what_stands_in_it_and_nothing_beside(
    file: Path, empty_directory: Path
) -> None:
    (empty_directory / ".env").write_text("TANDEM_TRAINING__HYPERPARAMETERS='{\"seed\": 3}'\n")
    assert origin_of(SEED) is Origin.DOTENV
    assert origin_of(EPOCHS) is Origin.FILE
    assert origin_of(RATE) is Origin.DEFAULT


def test_null_in_a_section_is_a_value_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_TRAINING", '{"checkpoint_every_steps": null}')
    assert origin_of("TANDEM_TRAINING__CHECKPOINT_EVERY_STEPS") is Origin.ENVIRONMENT


def test_a_part_of_a_setting_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_TRAINING__HYPERPARAMETERS__ADAPTER__RANK", "8")
    assert origin_of("TANDEM_TRAINING__HYPERPARAMETERS__ADAPTER") is Origin.ENVIRONMENT


@pytest.mark.parametrize("value", ["", "{", "[1]", "3", "[" * 5000])
def test_what_is_no_json_object_names_nothing_in_it(
    file: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TANDEM_TRAINING", value)
    assert origin_of(THREADS) is Origin.FILE
