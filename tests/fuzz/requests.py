"""Requests for every task, made from the contracts: a new field is fuzzed unasked."""

from __future__ import annotations

import types
from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import BaseModel

from registry.states import JobState
from tests.fuzz.house import FILES, HOST
from workers.contracts import TASKS

JOBS = [f"job-{state}" for state in JobState]
CHECKPOINTS = ["base-1", "ckpt-aaaaaa-00000010", "tip", "served", "base"]
PATHS = [*FILES, "model", "../outside/good.jsonl", "none.jsonl", ".", "..", "/", "/etc/passwd", "~nobody/x"]
# By what a field's name says it holds.
KNOWN: dict[str, Sequence[str]] = {
    "job": JOBS,
    "after": JOBS,
    "before": JOBS,
    "checkpoint": CHECKPOINTS,
    "parent": CHECKPOINTS,
    "dataset": PATHS,
    "path": PATHS,
    "suite": ["suite-1", "suite.jsonl"],
    "host": [HOST],
}
# ruff: noqa: E501 - lists of odd values read best as lists
ODD = [
    "", " ", "\0", "\n", "..", "-", "--", "--help", "\ud800", "\udcff", "é" * 200, "x" * 300, "x" * 5000, "~", "~x",
    "[/]", "[red]", "NaN", "null", "{}", "$(id)", "%s", "'; drop table jobs; --", "\u202e", "1" * 5000, "+999999d",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
]  # fmt: skip
NUMBERS = [0, -1, 1, 2, 31, 10**6, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400]
FLOATS = [0.0, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"), 0.5, -1.5]
HYPERPARAMETERS = ["learning_rate", "num_epochs", "seed", "max_steps", "schedule", "warmup_steps"]

odd_text = st.sampled_from(ODD) | st.text(max_size=40)
numbers = st.sampled_from(NUMBERS) | st.integers(min_value=-3, max_value=5)
floats = st.sampled_from(FLOATS)
junk = st.recursive(
    st.none() | st.booleans() | numbers | floats | odd_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3),
    max_leaves=6,
)
times = st.datetimes().map(datetime.isoformat) | st.sampled_from(
    ["2027-01-01T00:00:00Z", "2027-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"]
)


def words(name: str) -> st.SearchStrategy[str]:
    """Text for a field: mostly what its name asks for, sometimes anything."""
    known = [word for key, values in KNOWN.items() if key in name for word in values]
    likely = st.sampled_from(known or ["words", *JOBS, *CHECKPOINTS])
    return likely | likely | odd_text


def requests(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments for a task: near its contract, with something wrong now and then."""
    near = fields_of(TASKS[name].request)
    return near | near | st.tuples(near, st.dictionaries(odd_text, junk, max_size=2)).map(_merged) | wild


wild = st.dictionaries(odd_text, junk, max_size=3)


def fields_of(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with the model's fields; optional ones may be missing, each may hold junk."""
    required, optional = {}, {}
    for name, info in model.model_fields.items():
        value = _mostly(values_of(info.annotation, name=name))
        (required if info.is_required() else optional)[name] = value
    return st.fixed_dictionaries(required, optional=optional)


def values_of(kind: Any, *, name: str) -> st.SearchStrategy[Any]:
    """JSON values for an annotation."""
    origin, parts = get_origin(kind), get_args(kind)
    if name == "hyperparameters":
        return st.dictionaries(st.sampled_from(HYPERPARAMETERS) | odd_text, junk, max_size=3)
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(part, name=name) for part in parts])
    if origin is Literal:
        return st.sampled_from(parts)
    if origin in (tuple, list):
        return st.lists(values_of(parts[0], name=name), max_size=3)
    if origin is dict:
        return st.dictionaries(odd_text, values_of(parts[1], name=name), max_size=3)
    return _plain(kind, name=name)


def _plain(kind: Any, *, name: str) -> st.SearchStrategy[Any]:
    if not isinstance(kind, type):
        return junk
    if issubclass(kind, BaseModel):
        return fields_of(kind)
    if issubclass(kind, Enum):
        return st.sampled_from([str(member.value) for member in kind])
    if issubclass(kind, bool):
        return st.booleans()
    if issubclass(kind, str):
        return words(name)
    if issubclass(kind, int):
        return numbers
    if issubclass(kind, float):
        return floats
    return st.none() if kind is type(None) else times if name.endswith("_at") else junk


def _mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of([strategy] * 7 + [junk])


def _merged(pair: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return pair[0] | pair[1]
