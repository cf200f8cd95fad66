"""Door 2: the Python API, called with values of the right type and of the wrong one."""

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks.api
from registry.errors import TandemError
from tasks.api import JobHandle, Tandem
from tests.fuzz.requests import JOBS, junk, odd_text, values_of

pytestmark = [pytest.mark.integration, pytest.mark.fuzz, pytest.mark.timeout(3000)]
ENDLESS = {"wait", "follow", "watch"}


def methods(kind: type) -> list[str]:
    found = inspect.getmembers(kind, inspect.isfunction)
    return [name for name, _ in found if not name.startswith("_") and name not in ENDLESS]


def arguments(kind: type, name: str) -> st.SearchStrategy[dict[str, Any]]:
    method = getattr(kind, name)
    required, optional = {}, {}
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        hints = get_type_hints(method, vars(tasks.api))
        value = st.one_of([values_of(hints[parameter.name], name=parameter.name)] * 5 + [junk])
        (required if parameter.default is parameter.empty else optional)[parameter.name] = value
    return st.fixed_dictionaries(required, optional=optional)


client_calls = st.sampled_from(methods(Tandem)).flatmap(
    lambda name: st.tuples(st.just(name), arguments(Tandem, name))
)
handle_calls = st.sampled_from(methods(JobHandle)).flatmap(
    lambda name: st.tuples(st.just(name), arguments(JobHandle, name))
)


def is_plain(error: TandemError) -> bool:
    return bool(error.message) and isinstance(error.remedy, str) and "Traceback" not in str(error)


@settings(settings.get_profile("fuzz"))
@given(client_calls, st.sampled_from(JOBS) | odd_text, handle_calls)
def test_a_call_returns_or_raises_one_of_our_errors(
    door: Any, call: tuple[str, dict[str, Any]], job_id: str, command: tuple[str, dict[str, Any]]
) -> None:
    with door():
        check(lambda: getattr(Tandem(), call[0])(**call[1]))
        check(lambda: getattr(Tandem().job(job_id), command[0])(**command[1]))


def check(call: Callable[[], object]) -> None:
    """Any other error is raised on: a finding."""
    told = None
    try:
        call()
    except TandemError as error:
        told = error
    assert told is None or is_plain(told), repr(told)
