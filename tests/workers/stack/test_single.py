"""A container becomes its part, and says truly whether that works."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import Celery
from pydantic import SecretStr

from config.settings import RedisSettings, ServerSettings, Settings
from registry import asks
from registry.errors import RegistryUnavailable
from registry.schema import check_schema, upgrade
from registry.store import Registry
from workers.errors import StackError
from workers.stack.gate import write_gate_config
from workers.stack.single import NUM_WAITS, WAIT_SECONDS, bring_up_to_date, check_part, run_part


@pytest.fixture
def hosted(tmp_path: Path) -> Settings:
    redis = RedisSettings.model_validate({"url": "redis://tandem@127.0.0.1:1/0"})
    settings = Settings(home=tmp_path / "var", redis=redis)
    settings.paths.prepare()
    return settings


def celery() -> Celery:
    return Celery("single", set_as_current=False)


def test_a_part_is_replaced_by_its_process_with_the_password_out_of_sight(hosted: Settings) -> None:
    seen: list[tuple[str, ...]] = []
    environments: list[dict[str, str]] = []

    def replace(program: str, command: tuple[str, ...], environment: dict[str, str]) -> None:
        seen.append(command)
        environments.append(environment)

    run_part(hosted, name="flower", celery=celery(), replace=replace)
    password = hosted.paths.secret("flower_password")
    assert "flower" in seen[0]
    assert password not in " ".join(seen[0])
    assert environments[0]["FLOWER_BASIC_AUTH"].endswith(password)


def test_the_control_worker_brings_the_registry_up_to_date_first(hosted: Settings) -> None:
    run_part(hosted, name="control", celery=celery(), replace=lambda *_: None)
    check_schema(Registry(hosted.database_url))


@pytest.mark.parametrize("name", ["intelligence", "server"])
def test_what_stands_beside_the_gate_tells_it_its_settings(hosted: Settings, name: str) -> None:
    path = write_gate_config(hosted)
    moved = hosted.model_copy(update={"server": ServerSettings(port=9001)})
    run_part(moved, name="flower", celery=celery(), replace=lambda *_: None)
    assert "127.0.0.1:9001" not in path.read_text()
    run_part(moved, name=name, celery=celery(), replace=lambda *_: None)
    assert "127.0.0.1:9001" in path.read_text()


class Starting:
    """A database server that answers at the third question."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.slept: list[float] = []

    def apply(self, registry: Registry) -> None:
        self.num_asked += 1
        if self.num_asked < 3:
            raise RegistryUnavailable("Nobody answers.")


def test_a_database_server_that_starts_beside_it_is_waited_for_and_a_file_is_not(hosted: Settings) -> None:
    server = Settings(home=hosted.home, registry_url=SecretStr("postgresql://tandem@nowhere/tandem"))
    starting = Starting()
    bring_up_to_date(server, apply=starting.apply, sleep=starting.slept.append)
    assert (starting.num_asked, starting.slept) == (3, [WAIT_SECONDS] * 2)
    with pytest.raises(RegistryUnavailable):
        bring_up_to_date(hosted, apply=Starting().apply, sleep=starting.slept.append)
    assert len(starting.slept) == 2


def test_a_database_server_that_never_answers_is_an_error(hosted: Settings) -> None:
    def apply(registry: Registry) -> None:
        raise RegistryUnavailable("Nobody answers.")

    slept: list[float] = []
    server = Settings(home=hosted.home, registry_url=SecretStr("postgresql://tandem@nowhere/tandem"))
    with pytest.raises(RegistryUnavailable, match="Nobody answers"):
        bring_up_to_date(server, apply=apply, sleep=slept.append)
    assert len(slept) == NUM_WAITS


def test_an_unknown_part_is_refused_with_those_that_there_are(hosted: Settings) -> None:
    with pytest.raises(StackError, match="no part trian") as caught:
        run_part(hosted, name="trian", celery=celery(), replace=lambda *_: None)
    assert "train" in caught.value.remedy


def test_beat_works_while_its_ticks_arrive_and_not_before_the_first(hosted: Settings) -> None:
    registry = Registry(hosted.database_url)
    upgrade(registry)
    with pytest.raises(StackError, match="no tick was seen"):
        check_part(hosted, name="beat", celery=celery())
    with registry.transaction() as tx:
        asks.put(tx, kind="tick", subject_id="sweep")
    check_part(hosted, name="beat", celery=celery())


def test_beat_whose_ticks_stopped_does_not_work(hosted: Settings) -> None:
    registry = Registry(hosted.database_url, clock=lambda: datetime.now(UTC) - timedelta(hours=1))
    upgrade(registry)
    with registry.transaction() as tx:
        asks.put(tx, kind="tick", subject_id="sweep")
    with pytest.raises(StackError, match="last tick"):
        check_part(hosted, name="beat", celery=celery())
