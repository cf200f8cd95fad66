"""What a worker's processes inherit is set aside before they are made."""

import gc
from collections.abc import Iterator

import pytest
from celery import signals

import workers.forking
from config.settings import Settings
from workers.celery_settings import celery_settings


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_was_there_before_the_fork_is_searched_no_more(settings: Settings) -> None:
    assert workers.forking.__name__ in celery_settings(settings)["include"]
    gc.unfreeze()
    mine = [object()]
    signals.worker_before_create_process.send(sender=None)
    assert gc.get_freeze_count() > 0
    assert not any(mine is one for one in gc.get_objects())
