"""Turn pydantic's account of a bad setting into one sentence and a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from registry.records import Record
from trainer.config.legacy import NEW_PLACES
from trainer.errors import ConfigError

MAX_VALUE_CHARACTERS = 80

# What the same setting is called elsewhere: too far from our name for a spelling match to find.
OTHER_NAMES: Mapping[str, str] = {
    "lr": "learning_rate",
    "epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "batch_size": "tokens_per_batch",
    "per_device_train_batch_size": "tokens_per_batch",
    "gradient_accumulation_steps": "tokens_per_batch",
    "lr_scheduler_type": "schedule",
    "max_norm": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "betas": "adam_beta1",
    "eps": "adam_epsilon",
    "max_seq_length": "max_length",
}


def config_error(error: ValidationError, *, model: type[Record], prefix: str) -> ConfigError:
    """The first problem as `ConfigError`; further ones are counted."""
    problems = error.errors(include_url=False)
    problem = problems[0]
    places = [str(part) for part in problem["loc"]]
    field = ".".join(([prefix] if prefix else []) + places)
    value = problem.get("input")
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        message, remedy = f"{field} is not a setting{more}.", _suggestion(places, model=model)
    elif problem["type"] == "missing":
        message, remedy = f"{field} is missing{more}.", f"Add {field}."
    else:
        reason = problem["msg"].removeprefix("Value error, ")
        message = f"{field or 'The job'} = {_shown(value)}: {reason}{more}."
        remedy = str(problem.get("ctx", {}).get("remedy", "")) or _description(places, model=model)
    return ConfigError(message, field=field, value=value, remedy=remedy)


def _suggestion(places: Sequence[str], *, model: type[Record]) -> str:
    owner, name = _owner(places, model=model), places[-1]
    section, _, key = NEW_PLACES.get(name, "").partition(".")
    if len(places) == 1 and section in model.model_fields:
        return f"It belongs in {section!r}: {section}.{key}."
    known = list(owner.model_fields)
    wanted = OTHER_NAMES.get(name, name)
    close = [wanted] if wanted in known else difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {'.'.join([*places[:-1], close[0]])}?"
    for other, part in _sections(model):
        if wanted in part.model_fields:
            return f"It belongs in {other!r}: {other}.{wanted}."
    return f"Known are {', '.join(known)}."


def _description(places: Sequence[str], *, model: type[Record]) -> str:
    field = _owner(places, model=model).model_fields.get(places[-1]) if places else None
    if field is None or not field.description:
        return ""
    return f"{places[-1]}: {field.description}."


def _owner(places: Sequence[str], *, model: type[Record]) -> type[BaseModel]:
    owner: type[BaseModel] = model
    for place in places[:-1]:
        field = owner.model_fields.get(place)
        part = None if field is None else _section(field.annotation)
        if part is None:
            break
        owner = part
    return owner


def _sections(model: type[Record]) -> list[tuple[str, type[BaseModel]]]:
    parts = ((name, _section(field.annotation)) for name, field in model.model_fields.items())
    return [(name, part) for name, part in parts if part is not None]


def _section(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *get_args(annotation)):  # a section that may be left out is a union
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_VALUE_CHARACTERS else text[:MAX_VALUE_CHARACTERS] + "..."
