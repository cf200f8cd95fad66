from pathlib import Path

import pytest

from config.errors import SettingsError
from config.settings import load_settings, setting_lines, setting_names

PUBLIC_SETTINGS = [
    "TANDEM_ALLOWED_ROOTS",
    "TANDEM_CALIBRATION",
    "TANDEM_CONTAMINATION",
    "TANDEM_CONTAMINATION__MAX_COMMON_ROWS",
    "TANDEM_CONTAMINATION__MAX_OVERLAP",
    "TANDEM_CONTAMINATION__NUM_WORDS",
    "TANDEM_DEPLOY",
    "TANDEM_DEPLOYMENT",
    "TANDEM_DEPLOYMENT__KEEP_RELEASES",
    "TANDEM_DEPLOYMENT__PROBE_PROMPT",
    "TANDEM_DEPLOYMENT__TIMEOUT_SECONDS",
    "TANDEM_DEPLOYMENT__TRAFFIC",
    "TANDEM_DEPLOYMENT__TRAFFIC__MAX_ERROR_SHARE",
    "TANDEM_DEPLOYMENT__TRAFFIC__MIN_REQUESTS",
    "TANDEM_DEPLOYMENT__TRAFFIC__WATCH_SECONDS",
    "TANDEM_DEPLOY__BANDWIDTH_KIB",
    "TANDEM_DEPLOY__CACHE_BYTES",
    "TANDEM_DEPLOY__CANDIDATE_HOSTS",
    "TANDEM_DEPLOY__COMMAND_KEY",
    "TANDEM_DEPLOY__DATA_KEY",
    "TANDEM_DEPLOY__DELTA",
    "TANDEM_DEPLOY__HOST",
    "TANDEM_DEPLOY__KNOWN_HOSTS",
    "TANDEM_DEPLOY__PORT",
    "TANDEM_DEPLOY__SILENCE_SECONDS",
    "TANDEM_DEPLOY__TRANSFER_SECONDS",
    "TANDEM_DEPLOY__USER",
    "TANDEM_EVALUATION",
    "TANDEM_EVALUATION__ASKED_AT_ONCE",
    "TANDEM_EVALUATION__DEVICE",
    "TANDEM_EVALUATION__MAX_ASKS",
    "TANDEM_EVALUATION__MAX_NEW_TOKENS",
    "TANDEM_EVALUATION__NUM_THREADS",
    "TANDEM_EVALUATION__RETRY_AFTER_SECONDS",
    "TANDEM_FLOWER",
    "TANDEM_FLOWER__PORT",
    "TANDEM_FLOWER__USER",
    "TANDEM_GUARD",
    "TANDEM_GUARD__DEFER_SECONDS",
    "TANDEM_GUARD__LOCKS_CPU",
    "TANDEM_GUARD__MAY_SHARE",
    "TANDEM_GUARD__RESERVE_BYTES",
    "TANDEM_HOME",
    "TANDEM_LOG_LEVEL",
    "TANDEM_NAME",
    "TANDEM_PROJECTIONS",
    "TANDEM_PROJECTIONS__COMPLETED_DAYS",
    "TANDEM_QUEUE",
    "TANDEM_QUEUE__AGING_MINUTES",
    "TANDEM_QUEUE__MAX_RUNNING",
    "TANDEM_QUEUE__MAX_WAITING",
    "TANDEM_RANKING",
    "TANDEM_RANKING__MIN_CHECKPOINTS",
    "TANDEM_RANKING__NUM_RESAMPLES",
    "TANDEM_RANKING__WEIGHTS",
    "TANDEM_REDIS",
    "TANDEM_REDIS__CA",
    "TANDEM_REDIS__CERTIFICATE",
    "TANDEM_REDIS__KEY",
    "TANDEM_REDIS__PORT",
    "TANDEM_REDIS__SIGNED",
    "TANDEM_REDIS__URL",
    "TANDEM_REGISTRY_URL",
    "TANDEM_REGRESSION",
    "TANDEM_SCHEDULE",
    "TANDEM_SCHEDULE__DEPLOYMENT_SECONDS",
    "TANDEM_SCHEDULE__INBOX_SECONDS",
    "TANDEM_SCHEDULE__INBOX_SETTLE_SECONDS",
    "TANDEM_SCHEDULE__JUDGEMENT_SECONDS",
    "TANDEM_SCHEDULE__RANKING_SECONDS",
    "TANDEM_SCHEDULE__SWEEP_SECONDS",
    "TANDEM_SERVER",
    "TANDEM_SERVER__DEVICE",
    "TANDEM_SERVER__ENGINE",
    "TANDEM_SERVER__HOST",
    "TANDEM_SERVER__MAX_BATCH_TOKENS",
    "TANDEM_SERVER__MAX_NEW_TOKENS",
    "TANDEM_SERVER__MAX_PAUSE_SECONDS",
    "TANDEM_SERVER__MAX_RUNNING",
    "TANDEM_SERVER__NEEDS_KEY",
    "TANDEM_SERVER__NUM_THREADS",
    "TANDEM_SERVER__PORT",
    "TANDEM_SERVER__SWAP",
    "TANDEM_SERVER__VLLM",
    "TANDEM_SERVER__VLLM__ARGUMENTS",
    "TANDEM_SERVER__VLLM__COMMAND",
    "TANDEM_SERVER__VLLM__START_SECONDS",
    "TANDEM_TESTING",
    "TANDEM_TESTING__CRITICAL_DROP",
    "TANDEM_TESTING__MAX_P_VALUE",
    "TANDEM_TESTING__WARNING_DROP",
    "TANDEM_TRAINING",
    "TANDEM_TRAINING__CHECKPOINT_EVERY_STEPS",
    "TANDEM_TRAINING__CROSS_ENTROPY",
    "TANDEM_TRAINING__DEVICE",
    "TANDEM_TRAINING__GRADIENT_CHECKPOINTING",
    "TANDEM_TRAINING__HEARTBEAT_SECONDS",
    "TANDEM_TRAINING__HYPERPARAMETERS",
    "TANDEM_TRAINING__LEASE_SECONDS",
    "TANDEM_TRAINING__LOCKED",
    "TANDEM_TRAINING__LOCKED__BASE_MODEL",
    "TANDEM_TRAINING__LOCKED__MAX_LENGTH",
    "TANDEM_TRAINING__LOCKED__MODEL_ARCHITECTURE",
    "TANDEM_TRAINING__LOCKED__MODEL_NAME",
    "TANDEM_TRAINING__LOCKED__VOCAB_SIZE",
    "TANDEM_TRAINING__MAX_LENGTH",
    "TANDEM_TRAINING__MAX_TOKEN_CACHE_BYTES",
    "TANDEM_TRAINING__MAX_VALIDATION_SHARE",
    "TANDEM_TRAINING__NUM_CHECKPOINTS",
    "TANDEM_TRAINING__NUM_PROCESSES",
    "TANDEM_TRAINING__NUM_THREADS",
    "TANDEM_TRAINING__NUM_VALIDATION_ROWS",
    "TANDEM_TRAINING__OVERLAP_WRITING",
    "TANDEM_TRAINING__OVERLONG",
    "TANDEM_TRAINING__PARALLEL",
    "TANDEM_TRAINING__PROFILE",
    "TANDEM_TRAINING__QUEUES",
    "TANDEM_TRAINING__RECORD_ROWS",
    "TANDEM_TRAINING__REPORT_EVERY_SECONDS",
    "TANDEM_TRAINING__REPORT_TO",
    "TANDEM_TRAINING__STOP_GRACE_SECONDS",
    "TANDEM_TRAINING__VALIDATE_EVERY_SECONDS",
]
GROWING = ("TANDEM_CALIBRATION__", "TANDEM_RANKING__WEIGHTS__", "TANDEM_REGRESSION__")


def test_public_settings_are_frozen() -> None:
    assert [name for name in setting_names() if not name.startswith(GROWING)] == PUBLIC_SETTINGS


def test_the_environment_stands_above_dotenv_above_toml_above_the_default(
    empty_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings().redis.port == 6390
    (empty_directory / "tandem.toml").write_text("[redis]\nport = 1001\n")
    assert load_settings().redis.port == 1001
    (empty_directory / ".env").write_text("TANDEM_REDIS__PORT=1002\nCOMPOSE_PROFILES=train\n")
    assert load_settings().redis.port == 1002
    monkeypatch.setenv("TANDEM_REDIS__PORT", "1003")
    assert load_settings().redis.port == 1003


def test_a_misspelt_variable_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_REDIS__PROT", "1")
    with pytest.raises(SettingsError, match="no setting TANDEM_REDIS__PROT. Did you mean TANDEM_REDIS__PORT"):
        load_settings()


def test_a_misspelt_name_in_dotenv_is_refused(empty_directory: Path) -> None:
    (empty_directory / ".env").write_text("TANDEM_HOEM=x\n")
    with pytest.raises(SettingsError, match="TANDEM_HOEM"):
        load_settings()


def test_a_misspelt_name_in_toml_is_refused(empty_directory: Path) -> None:
    (empty_directory / "tandem.toml").write_text("[redis]\nprot = 1\n")
    with pytest.raises(SettingsError, match=r"no setting redis.prot. Did you mean redis.port"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lerning_rate = 1", "HYPERPARAMETERS__LERNING_RATE .*lerning_rate is not a setting.*learning_rate"),
        ('num_epochs = "many"', "HYPERPARAMETERS__NUM_EPOCHS .*num_epochs = 'many'.*integer"),
        ("learning_rate = nan", r"training\.hyperparameters\.learning_rate in tandem\.toml.*finite"),
        ("adapter = {rank = 'x'}", r"training\.hyperparameters\.adapter\.rank in tandem\.toml"),
    ],
)
def test_a_hyperparameter_that_the_trainer_would_refuse_is_refused_as_settings_are_read(
    empty_directory: Path, text: str, said: str
) -> None:
    (empty_directory / "tandem.toml").write_text(f"[training.hyperparameters]\n{text}\n")
    with pytest.raises(SettingsError, match=said):
        load_settings()


def test_a_wrong_hyperparameter_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_TRAINING__HYPERPARAMETERS__LERNING_RATE", "9")
    with pytest.raises(SettingsError, match="TANDEM_TRAINING__HYPERPARAMETERS__LERNING_RATE"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"), [("SEED", "7"), ("LEARNING_RATE", "3e-4"), ("ADAPTER", '{"kind": "lora"}')]
)
def test_a_hyperparameter_in_the_environment_may_be_text_or_json(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TANDEM_TRAINING__HYPERPARAMETERS__{name}", value)
    assert name.lower() in load_settings().training.hyperparameters


@pytest.mark.parametrize("is_section_last", [True, False])
def test_a_section_as_json_leaves_what_another_variable_names_in_it(
    is_section_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "TANDEM_TRAINING__HYPERPARAMETERS__NUM_EPOCHS": "2",
        "TANDEM_TRAINING__HYPERPARAMETERS": '{"seed": 3, "num_epochs": 9}',
    }
    for name in sorted(told, reverse=is_section_last):
        monkeypatch.setenv(name, told[name])
    assert load_settings().training.hyperparameters == {"seed": 3, "num_epochs": "2"}


def test_a_dotenv_that_is_no_text_is_named(empty_directory: Path) -> None:
    (empty_directory / ".env").write_bytes(b"TANDEM_HOME=\xff\n")
    with pytest.raises(SettingsError, match=r"\.env cannot be read: it is not UTF-8"):
        load_settings()


def test_a_section_that_is_no_json_is_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_TRAINING", "{")
    with pytest.raises(SettingsError, match=r"variable of the environment or of \.env cannot be read"):
        load_settings()


@pytest.mark.parametrize("name", ["TANDEM_TRAINING", "TANDEM_TRAINING__HYPERPARAMETERS__SEED"])
@pytest.mark.parametrize("depth", [500, 100_000])
def test_a_value_that_is_nested_too_deeply_is_refused(
    name: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "[" * depth + "]" * depth)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert len(str(caught.value)) < 300


def test_broken_toml_is_said_plainly(empty_directory: Path) -> None:
    (empty_directory / "tandem.toml").write_text("[redis\n")
    with pytest.raises(SettingsError, match="tandem.toml cannot be read"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TANDEM_REDIS__PORT", "70000"),
        ("TANDEM_TRAINING__LEASE_SECONDS", "nan"),
        ("TANDEM_TRAINING__LEASE_SECONDS", "inf"),
        ("TANDEM_TRAINING__DEVICE", "gpu"),
        ("TANDEM_REGRESSION__MAX_LOSS_INCREASE", "-1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=name):
        load_settings()


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_REDIS__URL", "redis://:hush@127.0.0.1:1/0")
    settings = load_settings()
    assert "hush" not in repr(settings)
    assert "hush" not in str(setting_lines(settings))
    assert settings.redis_url == "redis://:hush@127.0.0.1:1/0"


def test_a_wrong_secret_does_not_show_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_REDIS", '{"url": {"password": "hush"}}')
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "whole"),
    [
        ("postgresql://tandem@10.0.0.1:5432/tandem", "postgresql://tandem:a%2Fb%40c@10.0.0.1:5432/tandem"),
        (
            "postgresql+psycopg://tandem@/postgres?host=/run/x",
            "postgresql+psycopg://tandem:a%2Fb%40c@/postgres?host=/run/x",
        ),
        ("postgresql://tandem:own@10.0.0.1/tandem", "postgresql://tandem:own@10.0.0.1/tandem"),
        ("postgresql:///tandem", "postgresql:///tandem"),
        ("sqlite:////srv/tandem.db", "sqlite:////srv/tandem.db"),
        ("postgresql://tandem@[broken/tandem", "postgresql://tandem@[broken/tandem"),
    ],
)
def test_the_registrys_password_is_taken_from_its_file_where_the_url_has_none(
    told: str, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_REGISTRY_URL", told)
    settings = load_settings()
    assert settings.database_url == told
    settings.paths.prepare()
    (settings.paths.secrets / "registry_password").touch()
    assert settings.database_url == told
    (settings.paths.secrets / "registry_password").write_text("a/b@c\n")
    assert settings.database_url == whole


def test_generated_secrets_are_kept_and_readable_by_their_owner_only(empty_directory: Path) -> None:
    settings = load_settings()
    settings.paths.prepare()
    first = settings.paths.secret("redis_password")
    assert settings.paths.secret("redis_password") == first
    assert (settings.paths.secrets / "redis_password").stat().st_mode & 0o077 == 0


def test_a_home_that_cannot_be_made_is_named(empty_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_directory / "file").write_text("")
    monkeypatch.setenv("TANDEM_HOME", str(empty_directory / "file" / "home"))
    with pytest.raises(SettingsError, match="TANDEM_HOME=.*cannot be used"):
        load_settings().paths.prepare()
