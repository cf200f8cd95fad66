"""Door 1: Celery messages, as anything that can reach Redis may write them."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.requests import junk, requests
from workers.contracts import TASKS

pytestmark = [pytest.mark.integration, pytest.mark.fuzz, pytest.mark.timeout(3000)]

calls = st.sampled_from(sorted(TASKS)).flatmap(lambda name: st.tuples(st.just(name), requests(name)))
one_or_two = st.lists(calls, min_size=1, max_size=2)


@settings(settings.get_profile("fuzz"))
@given(one_or_two, st.sampled_from([None, None, None, None, None, None, "args"]), junk)
def test_a_message_becomes_a_result_or_one_sentence(
    door: Any, wanted: list[tuple[str, dict[str, Any]]], positional: str | None, value: Any
) -> None:
    with door() as case:
        for name, fields in wanted:
            case.wire.run(name, args=None if positional is None else [value], kwargs=fields)
