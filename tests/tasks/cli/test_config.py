"""`tandem config`: where a value comes from, and what may be changed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from config.sections import JOB_SECTIONS, SETTING_OF, setting_of
from config.settings import Settings, load_settings, setting_lines, setting_names
from config.training import TrainingSettings
from tasks.cli.main import main
from trainer.config.hyperparameters import Hyperparameters
from trainer.config.job import JobConfig
from trainer.config.legacy import NEW_PLACES
from trainer.config.locked import LOCKED_KEYS


@pytest.fixture
def tandem(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tandem", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), " ".join((out + err).split())

    return run


def test_each_value_says_where_it_comes_from(tandem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "tandem.toml").write_text("[training]\nnum_checkpoints = 5\nnum_threads = 2\n")
    (tmp_path / ".env").write_text("TANDEM_TRAINING__NUM_THREADS=3\nTANDEM_TRAINING__OVERLONG=truncate\n")
    monkeypatch.setenv("TANDEM_TRAINING__OVERLONG", "reject")
    _, text = tandem("config", "show", "--origin", "--json")
    found = json.loads(text)
    assert found["TANDEM_TRAINING__NUM_CHECKPOINTS"] == {"value": 5, "origin": "tandem.toml"}
    assert found["TANDEM_TRAINING__NUM_THREADS"] == {"value": 3, "origin": ".env"}
    assert found["TANDEM_TRAINING__OVERLONG"] == {"value": "reject", "origin": "environment"}
    assert found["TANDEM_TRAINING__PROFILE"] == {"value": "plain_sft", "origin": "default"}


def test_each_hyperparameter_in_force_says_where_it_comes_from(  # type: ignore[no-untyped-def]
    tandem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tandem.toml").write_text("[training.hyperparameters]\nlearning_rate = 3e-4\nseed = 1\n")
    (tmp_path / ".env").write_text("TANDEM_TRAINING__HYPERPARAMETERS__NUM_EPOCHS=2\n")
    monkeypatch.setenv("TANDEM_TRAINING__HYPERPARAMETERS__SEED", "7")
    _, text = tandem("config", "show", "--origin", "--json")
    start = "TANDEM_TRAINING__HYPERPARAMETERS__"
    found = {
        name.removeprefix(start).lower(): (one["value"], one["origin"])
        for name, one in json.loads(text).items()
        if name.startswith(start)
    }
    chosen = {
        "learning_rate": (3e-4, "tandem.toml"),
        "num_epochs": (2, ".env"),
        "seed": (7, "environment"),
    }
    rest = Hyperparameters().model_dump(mode="json")
    assert found == {**{name: (value, "default") for name, value in rest.items()}, **chosen}


def test_hyperparameters_that_are_wrong_are_refused_and_not_shown(tandem, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "tandem.toml").write_text("[training.hyperparameters]\nlearning_rate = 'fast'\n")
    code, text = tandem("config", "show", "--json")
    assert code == 2
    assert "learning_rate = 'fast'" in text


def test_a_section_given_as_json_names_what_stands_in_it_only(  # type: ignore[no-untyped-def]
    tandem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tandem.toml").write_text("[training]\nnum_threads = 2\n")
    monkeypatch.setenv("TANDEM_TRAINING", '{"device": "cpu"}')
    found = json.loads(tandem("config", "show", "--origin", "--json")[1])
    assert found["TANDEM_TRAINING__DEVICE"] == {"value": "cpu", "origin": "environment"}
    assert found["TANDEM_TRAINING__NUM_THREADS"] == {"value": 2, "origin": "tandem.toml"}
    assert found["TANDEM_TRAINING__PROFILE"]["origin"] == "default"


def test_a_key_is_written_and_comments_stay(tandem, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "tandem.toml"
    file.write_text("# mine\n[training]\nnum_threads = 2  # of four\n")
    assert tandem("config", "set", "hyperparameters.learning_rate", "3e-4")[0] == 0
    assert tandem("config", "set", "profile.name", "emoji_think")[0] == 0
    assert "# mine" in file.read_text()
    assert "# of four" in file.read_text()
    training = load_settings().training
    assert (training.hyperparameters, training.profile) == ({"learning_rate": 3e-4}, "emoji_think")


@pytest.mark.parametrize(
    "key", ["base_model", "model_name", "model_architecture", "max_length", "vocab_size"]
)
def test_a_locked_key_takes_an_unlock(tandem, tmp_path: Path, key: str) -> None:  # type: ignore[no-untyped-def]
    code, words = tandem("config", "set", key, "2048")
    assert code == 2
    assert "is locked" in words
    assert "--unlock" in words
    assert not (tmp_path / "tandem.toml").exists()


@pytest.mark.parametrize("unlock", [[], ["--unlock"]])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("locked", '{"vocab_size": 9}'),
        ("training.locked", '{"vocab_size": 9}'),
        ("training", '{"max_length": 64}'),
        ("server.vllm", "{}"),
    ],
)
def test_a_section_is_not_set_whole(  # type: ignore[no-untyped-def]
    tandem, tmp_path: Path, key: str, value: str, unlock: list[str]
) -> None:
    before = "[training]\nmax_length = 128\n[training.locked]\nvocab_size = 7\n"
    (tmp_path / "tandem.toml").write_text(before)
    code, words = tandem("config", "set", key, value, *unlock)
    assert code == 2
    assert "is a section: set whole, all else that stands in it would be lost" in words
    assert (tmp_path / "tandem.toml").read_text() == before


def test_an_unlocked_key_is_written(tandem) -> None:  # type: ignore[no-untyped-def]
    assert tandem("config", "set", "max_length", "2048", "--unlock")[0] == 0
    assert load_settings().training.max_length == 2048


def test_model_name_and_base_model_must_agree(tandem, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = tmp_path / "Qwen3-0.6B"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 9}')
    assert tandem("config", "set", "base_model", str(model), "--unlock")[0] == 0
    code, words = tandem("config", "set", "model_name", "Qwen3-8B", "--unlock")
    assert code == 1
    assert "does not agree with the model at" in words
    assert tandem("config", "set", "model_name", "Qwen/Qwen3-0.6B", "--unlock")[0] == 0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("batch_size", "8", "Set training.hyperparameters.tokens_per_batch"),
        ("learning_rate", "1", "Set training.hyperparameters.learning_rate"),
        ("output_dir", "x", "'output_dir' is no setting of its own"),
        ("model.dtype", "float32", "In a job file it is model.dtype; a host decides it itself."),
        ("environment.batching", "packed", "In a job file it is environment.batching"),
        ("training.learning_rate", "1", "Did you mean training.hyperparameters.learning_rate?"),
        ("hyperparameters.seed", "[" * 700 + "]" * 700, "cannot be written"),
        ("training.num_treads", "2", "Did you mean training.num_threads"),
        ("hyperparameters.lerning_rate", "1e-3", "Did you mean learning_rate"),
        ("hyperparameters.learning_rate", "fast", "learning_rate = 'fast'"),
        ("environment.num_threads", "0", "greater than or equal to 1"),
        ("data.overlong", "cut", "'drop', 'truncate' or 'reject'"),
        ("profile.name", "emoji", "no profile 'emoji'"),
        ("training.profile", "null", "null is no value"),
        ("home.x", "1", "home"),
        ("_env_file", "x", "There is no setting '_env_file'"),
        ("", "x", "There is no setting ''"),
        ("allowed_roots", "[null]", "cannot be written"),
        ("deployment.probe_prompt", "\udc80", ""),
    ],
)
def test_a_wrong_key_or_value_is_named_and_nothing_is_written(  # type: ignore[no-untyped-def]
    tandem, tmp_path: Path, key: str, value: str, said: str
) -> None:
    code, words = tandem("config", "set", key, value)
    assert code != 0
    assert said in words
    assert "Traceback" not in words
    assert not (tmp_path / "tandem.toml").exists()


@pytest.mark.parametrize("name", [name for name in NEW_PLACES if name not in LOCKED_KEYS])
def test_a_name_at_its_old_place_is_sent_to_a_setting_that_exists_or_to_the_job_file(  # type: ignore[no-untyped-def]
    tandem, name: str
) -> None:
    code, words = tandem("config", "set", name, "1")
    assert code == 2
    advised = re.search(r"Set (\S+): `tandem config set (\S+) VALUE", words)
    if advised is None:
        section, key = NEW_PLACES[name].split(".")
        assert f"In a job file it is {section}.{key}; a host decides it itself." in words
        assert key in JobConfig.model_fields[section].annotation.model_fields
        assert "There is no setting" in tandem("config", "set", f"training.{key}", "1")[1]
        return
    assert setting_of(advised[2]) == advised[1]
    told = {line[len("TANDEM_") :].replace("__", ".").lower() for line, _ in setting_lines(load_settings())}
    assert advised[1] in told


def test_every_setting_of_a_job_key_exists() -> None:
    names = {name.removeprefix("TANDEM_").replace("__", ".").lower() for name in setting_names()}
    assert set(SETTING_OF.values()) <= names


def test_every_setting_that_bears_the_name_of_a_job_key_stands_for_it() -> None:
    settings = TrainingSettings.model_fields
    shared = {
        f"{section}.{key}": f"training.{key}"
        for section, model in JOB_SECTIONS.items()
        for key in model.model_fields
        if key in settings
    }
    assert "data.max_token_cache_bytes" in shared
    assert shared.items() <= SETTING_OF.items()


def test_a_section_in_the_environment_that_leaves_the_key_out_hides_nothing(  # type: ignore[no-untyped-def]
    tandem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_TRAINING", '{"device": "cpu"}')
    assert "Warning" not in tandem("config", "set", "environment.num_threads", "2")[1]
    monkeypatch.setenv("TANDEM_TRAINING", '{"num_threads": 4}')
    assert "stays in force" in tandem("config", "set", "environment.num_threads", "2")[1]


def test_a_stronger_source_is_told(tandem, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("TANDEM_TRAINING__NUM_THREADS", "4")
    code, words = tandem("config", "set", "environment.num_threads", "2")
    assert code == 0
    assert "Warning: TANDEM_TRAINING__NUM_THREADS is set in the environment" in words


def test_a_key_at_the_old_place_in_the_file_is_sent_to_the_new_one(tandem, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "tandem.toml").write_text("batch_size = 4\n")
    code, words = tandem("config", "show")
    assert code == 2
    assert "hyperparameters.tokens_per_batch" in words


def test_the_schema_has_the_eight_sections(tandem) -> None:  # type: ignore[no-untyped-def]
    schema = json.loads(tandem("config", "schema")[1])
    sections = {
        "hyperparameters",
        "profile",
        "monitoring",
        "locked",
        "data",
        "model",
        "output",
        "environment",
    }
    assert sections <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_the_schema_of_the_settings_knows_the_hyperparameters(tandem) -> None:  # type: ignore[no-untyped-def]
    schema = json.loads(tandem("config", "schema", "--of", "settings")[1])
    assert "training" in schema["properties"]
    found = schema["$defs"]["TrainingSettings"]["properties"]["hyperparameters"]
    assert set(found["properties"]) == set(Hyperparameters.model_fields)
    assert found["properties"]["learning_rate"]["maximum"] == 1
    assert found["additionalProperties"] is False
    assert "AdapterConfig" in schema["$defs"]
