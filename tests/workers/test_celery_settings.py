from datetime import timedelta

from config.settings import Settings
from workers.celery_settings import beat_schedule
from workers.contracts import parse_request


def test_what_is_owed_to_a_checkpoint_is_asked_for_every_five_minutes(settings: Settings) -> None:
    tick = beat_schedule(settings)["judgement.sweep"]
    assert tick["schedule"] == timedelta(minutes=5)


def test_every_tick_expires_before_the_next_and_needs_no_arguments(settings: Settings) -> None:
    for name, tick in beat_schedule(settings).items():
        assert tick["options"]["expires"] <= tick["schedule"].total_seconds()
        parse_request(tick["task"], fields={})
        assert name == tick["task"]
