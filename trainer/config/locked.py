"""What must not change by accident: a run is refused where its model is not the one that was locked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from registry.manifests import MANIFEST_NAME
from trainer.config.job import JobConfig, LockedConfig
from trainer.errors import ConfigError

LOCKED_KEYS = tuple(LockedConfig.model_fields)
SHAPE = ("model_architecture", "vocab_size", "hidden_size", "num_hidden_layers")


def check_locked(config: JobConfig) -> None:
    """`ConfigError` at the first locked value that the run's model or max_length does not have."""
    locked, model = config.locked, config.model
    if locked.max_length is not None and locked.max_length != model.max_length:
        raise _refused(
            "max_length", locked=locked.max_length, found=model.max_length, where="model.max_length"
        )
    # What tandem trained or took in lies under a name of its own: a base model's was checked as it came in.
    if locked.model_name is not None and not (model.path / MANIFEST_NAME).is_file():
        check_model_name(locked.model_name, path=model.path)
    _check_facts(locked, path=model.path)
    if locked.base_model is not None:
        _check_descent(_path_of(locked.base_model), model=model.path)


def check_base_model(locked: LockedConfig, *, path: Path) -> None:
    """`ConfigError` unless a model that all others are to descend from is the one that was locked."""
    if locked.base_model is not None and _path_of(locked.base_model).resolve() != path.resolve():
        raise _refused(
            "base_model", locked=locked.base_model, found=str(path), where="what is to be the base"
        )
    if locked.model_name is not None:
        check_model_name(locked.model_name, path=path)
    _check_facts(locked, path=path)


def check_model_name(name: str, *, path: Path) -> None:
    """`ConfigError` unless the model at `path` has this name: its directory's, or what it was saved as."""
    facts = model_facts(path)
    names = sorted({str(facts["saved_as"]).rsplit("/", 1)[-1], path.resolve().name} - {"", "None"})
    if _simple(name.rsplit("/", 1)[-1]) not in map(_simple, names):
        raise ConfigError(
            f"model_name = {name!r} does not agree with the model at {path}, which is {' or '.join(names)}.",
            field="locked.model_name",
            value=name,
            remedy="Set model_name and base_model to the same model.",
        )


def model_facts(path: Path) -> dict[str, Any]:
    """What the configuration of a model directory says of it; `ConfigError` where it cannot be read."""
    file = path / "config.json"
    try:
        found = json.loads(file.read_bytes())
        facts = {name: found.get(name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
        architectures = found.get("architectures") or [None]
        return {**facts, "model_architecture": architectures[0], "saved_as": found.get("_name_or_path")}
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{file} cannot be read as a model's configuration: {type(error).__name__}.",
            field="model.path",
            value=str(path),
            remedy="Name a directory that save_pretrained() wrote.",
        ) from None


def _path_of(base_model: str) -> Path:
    try:
        return Path(base_model).expanduser()
    except RuntimeError:  # ~somebody who has no home here
        raise ConfigError(
            f"base_model is locked to {base_model!r}, but this host knows no home of that user.",
            field="locked.base_model",
            value=base_model,
            remedy="Name the whole path: `tandem config set locked.base_model PATH --unlock`.",
        ) from None


def _check_facts(locked: LockedConfig, *, path: Path) -> None:
    if locked.model_architecture is None and locked.vocab_size is None:
        return
    facts = model_facts(path)
    for key in ("model_architecture", "vocab_size"):
        wanted, found = getattr(locked, key), facts[key]
        if wanted is not None and wanted != found:
            raise _refused(key, locked=wanted, found=found, where=f"{path / 'config.json'}")


def _check_descent(base: Path, *, model: Path) -> None:
    """A model that descends from another has its shape. That one may lie on another host: then nothing is."""
    try:
        wanted = model_facts(base)
    except ConfigError:
        return
    found = model_facts(model)
    for key in SHAPE:
        if wanted[key] != found[key]:
            raise ConfigError(
                f"base_model is locked to {base}, whose {key} is {wanted[key]!r}, but {model} has "
                f"{found[key]!r}: it does not descend from that.",
                field="locked.base_model",
                value=str(model),
                remedy="Train from a checkpoint of the locked base model, or change it knowingly: "
                "`tandem config set locked.base_model PATH --unlock`.",
            )


def _refused(key: str, *, locked: object, found: object, where: str) -> ConfigError:
    return ConfigError(
        f"{key} is locked to {locked!r}, but {where} has {found!r}.",
        field=f"locked.{key}",
        value=found,
        remedy=f"Use the model that was locked, or change it knowingly: "
        f"`tandem config set locked.{key} {found} --unlock`.",
    )


def _simple(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
