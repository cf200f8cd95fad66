import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, inspect, text

from registry import queue
from registry.errors import RegistryUnavailable
from registry.records import TrainingJob
from registry.schema import check_schema, newest_revision, upgrade
from registry.store import Registry, Transaction
from registry.tables import jobs, metadata
from registry.testing import START, ManualClock, make_dataset, make_job


def test_the_migrations_give_the_tables_that_the_code_uses(registry: Registry) -> None:
    with registry.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_upgrading_twice_changes_nothing(registry: Registry) -> None:
    upgrade(registry)
    check_schema(registry)


def test_an_empty_database_is_refused_with_the_remedy_and_brought_up(empty_url: str) -> None:
    registry = Registry(empty_url)
    with pytest.raises(RegistryUnavailable, match="schema is empty.*tandem up"):
        check_schema(registry)
    upgrade(registry)
    check_schema(registry)
    registry.engine.dispose()


def test_a_database_of_a_later_version_is_refused_with_both_versions(empty_url: str) -> None:
    registry = Registry(empty_url)
    upgrade(registry)
    with registry.transaction() as tx:
        tx.connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(RegistryUnavailable, match=f"schema is 9999; .* needs {newest_revision()}"):
        check_schema(registry)
    registry.engine.dispose()


def test_a_database_without_tables_says_what_makes_them(empty_url: str) -> None:
    registry = Registry(empty_url)
    with pytest.raises(RegistryUnavailable), registry.transaction() as tx:
        tx.find(TrainingJob)
    registry.engine.dispose()


def test_processes_that_start_together_bring_a_database_up_once(empty_url: str) -> None:
    num_starters = 4
    registries = [Registry(empty_url) for _ in range(num_starters)]
    start = threading.Barrier(num_starters)

    def up(registry: Registry) -> None:
        start.wait()
        upgrade(registry)

    with ThreadPoolExecutor(num_starters) as pool:
        list(pool.map(up, registries))
    for registry in registries:
        check_schema(registry)
        registry.engine.dispose()


def test_jobs_of_the_first_version_keep_their_times_and_their_order(empty_url: str) -> None:
    registry = Registry(empty_url, clock=ManualClock())
    times = {"job-b": START, "job-a": START + timedelta(microseconds=1), "job-c": START + timedelta(days=1)}
    with registry.transaction() as tx:
        upgrade_to(tx, revision="0001")
        tx.add(make_dataset(), actor="test")
        for job_id, queued_at in times.items():
            values = make_job(id=job_id, state="queued").model_dump(mode="json")
            values |= {"submitted_at": START, "queued_at": queued_at}
            known = {column["name"] for column in inspect(tx.connection).get_columns("jobs")}
            tx.connection.execute(insert(jobs).values({key: values[key] for key in known}))
    upgrade(registry)
    with registry.reading() as tx:
        assert {job.id: job.queued_at for job in queue.waiting(tx)} == times
        assert [job.id for job in queue.waiting(tx)] == list(times)
    registry.engine.dispose()


def upgrade_to(tx: Transaction, *, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", "registry:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = tx.connection
    command.upgrade(config, revision)
