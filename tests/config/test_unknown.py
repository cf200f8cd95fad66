"""What is said of a name that is no setting."""

import re
from pathlib import Path

import pytest

from config.errors import SettingsError
from config.settings import load_settings
from trainer.config.hyperparameters import Hyperparameters


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LEARNING_RATE", "TRAINING__HYPERPARAMETERS__LEARNING_RATE"),
        ("TRAINING__LEARNING_RATE", "TRAINING__HYPERPARAMETERS__LEARNING_RATE"),
        ("SERVER__LEARNING_RATE", "TRAINING__HYPERPARAMETERS__LEARNING_RATE"),
        ("HYPERPARAMETERS__LERNING_RATE", "TRAINING__HYPERPARAMETERS__LEARNING_RATE"),
        ("TRAINING__LERNING_RATE", "TRAINING__HYPERPARAMETERS__LEARNING_RATE"),
        ("BATCH_SIZE", "TRAINING__HYPERPARAMETERS__TOKENS_PER_BATCH"),
        ("TRAINING__BASE_MODEL", "TRAINING__LOCKED__BASE_MODEL"),
        ("TRAINING__PROFILE__NAME", "TRAINING__PROFILE"),
        ("DATA__MAX_TOKEN_CACHE_BYTES", "TRAINING__MAX_TOKEN_CACHE_BYTES"),
        ("DEVICE", "TRAINING__DEVICE"),
        ("SERVR__DEVICE", "SERVER__DEVICE"),
        ("TRAINING__NUM_TREADS", "TRAINING__NUM_THREADS"),
        *((f"TRAINING__{name}", f"TRAINING__HYPERPARAMETERS__{name}") for name in ("SEED", "SCHEDULE")),
    ],
)
def test_an_unknown_variable_is_sent_to_the_setting_that_was_meant(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TANDEM_{name}", "1")
    with pytest.raises(SettingsError, match=rf"no setting TANDEM_{name}\. Did you mean TANDEM_{meant}\?$"):
        load_settings()


@pytest.mark.parametrize("name", Hyperparameters.model_fields)
def test_a_hyperparameter_right_below_training_is_sent_to_its_place(empty_directory: Path, name: str) -> None:
    (empty_directory / "tandem.toml").write_text(f"[training]\n{name} = 1\n")
    said = f"There is no setting training.{name}. Did you mean training.hyperparameters.{name}?"
    with pytest.raises(SettingsError, match=f"^{re.escape(said)}$"):
        load_settings()


@pytest.mark.parametrize("name", ["DTYPE", "MODEL__DTYPE", "TRAINING__TORCH_DTYPE"])
def test_a_key_of_the_job_file_alone_is_said_to_be_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"TANDEM_{name}", "float32")
    with pytest.raises(SettingsError, match=r"In a job file it is model\.dtype; a host decides it itself"):
        load_settings()


def test_a_key_of_the_job_file_alone_is_said_to_be_one_in_the_file_too(empty_directory: Path) -> None:
    (empty_directory / "tandem.toml").write_text('[training]\ndtype = "float32"\n')
    with pytest.raises(SettingsError, match=r"no setting training\.dtype\. In a job file it is model\.dtype"):
        load_settings()


def test_a_name_that_is_near_nothing_is_sent_to_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_XYZZY", "1")
    with pytest.raises(SettingsError, match="`tandem config show` lists every setting"):
        load_settings()


def test_a_section_is_not_proposed_for_what_stands_in_it(empty_directory: Path) -> None:
    (empty_directory / "tandem.toml").write_text("[training]\nxyzzy = 1\n")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "Did you mean training?" not in str(caught.value)
