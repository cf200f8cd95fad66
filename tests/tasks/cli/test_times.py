from datetime import UTC, datetime, timedelta

import pytest

from tasks.cli.times import parse_time
from workers.errors import RequestError

NOW = datetime(2027, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "hours"), [("+90m", 1.5), ("+2h", 2), ("+1d", 24), ("+36s", 0.01), ("2027-01-01T13:00+00:00", 1)]
)
def test_a_time_is_relative_or_iso(text: str, hours: float) -> None:
    assert parse_time(text, now=NOW) == NOW + timedelta(hours=hours)


def test_a_time_without_a_zone_is_local() -> None:
    assert parse_time("2027-01-31T03:00", now=NOW) == datetime(2027, 1, 31, 3).astimezone(UTC)


@pytest.mark.parametrize("text", ["", "tomorrow", "90m", "+5w", "+9999999d", "2027-13-01", "+1.5h"])
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(RequestError, match="is no time.*Write 2027-01-31T03:00"):
        parse_time(text, now=NOW)
