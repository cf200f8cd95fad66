"""Changes one key of `tandem.toml`, comments and order kept, once every setting was checked with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError
from tomlkit.exceptions import TOMLKitError

from config.errors import SettingsError
from config.origins import Origin, origin_of
from config.sections import advice, is_locked, is_section, setting_of
from config.settings import Settings, load_settings
from config.sources import CONFIG_FILE, variable_of
from registry.files import write_atomically
from trainer.config.locked import LOCKED_KEYS, check_model_name
from trainer.config.pinned import profile_named


def set_setting(key: str, value: str, *, is_unlocked: bool = False) -> tuple[str, str]:
    """Set a key, `section.name`; the setting's full name, and a warning where a stronger source hides it.

    Raises `SettingsError` for an unknown or locked key and a value that does not fit, `ConfigError` for what
    the trainer would refuse; then nothing was written.
    """
    setting = setting_of(key)
    if key not in LOCKED_KEYS and setting == key and advice(key):
        raise SettingsError(f"{key!r} is no setting of its own.", remedy=advice(key))
    if is_section(setting, of=Settings):
        raise SettingsError(
            f"{setting} is a section: set whole, all else that stands in it would be lost.",
            remedy=f"Set its keys one by one, as {setting}.NAME; `tandem config show` lists them.",
        )
    if is_locked(setting) and not is_unlocked:
        raise SettingsError(
            f"{setting} is locked: with another value new jobs train another model than before.",
            remedy="If that is meant, pass --unlock.",
        )
    parts = setting.split(".")
    if parts[0] not in Settings.model_fields:
        raise SettingsError(
            f"There is no setting {key!r}.", remedy="`tandem config show` lists every setting."
        )
    document = _read()
    _put(document, parts, value=_parsed(value))
    _check(document)
    _write(document)
    return setting, _hidden(setting)


def _read() -> tomlkit.TOMLDocument:
    path = Path(CONFIG_FILE)
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    except (TOMLKitError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{CONFIG_FILE} cannot be read: {error}.", remedy="Mend it by hand.") from None


def _parsed(text: str) -> Any:
    """Numbers, true and lists are what they look like; whatever else is the text itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if value is None:
        raise SettingsError(
            "null is no value.", remedy=f"To go back to a default, remove the key from {CONFIG_FILE}."
        )
    return value


def _put(document: tomlkit.TOMLDocument, parts: list[str], *, value: Any) -> None:
    table: Any = document
    for part in parts[:-1]:
        if part not in table:
            table[part] = tomlkit.table()
        table = table[part]
        if not isinstance(table, dict):
            raise SettingsError(f"{'.'.join(parts)}: {part} is a value, not a section, in {CONFIG_FILE}.")
    try:
        table[parts[-1]] = value
    except (TOMLKitError, TypeError, ValueError, RecursionError) as error:
        raise SettingsError(f"{'.'.join(parts)} cannot be written to {CONFIG_FILE}: {error}.") from None


def _write(document: tomlkit.TOMLDocument) -> None:
    try:
        write_atomically(Path(CONFIG_FILE), content=tomlkit.dumps(document).encode())
    except (OSError, UnicodeEncodeError, RecursionError) as error:
        raise SettingsError(f"{CONFIG_FILE} cannot be written: {error}.") from None


def _check(document: tomlkit.TOMLDocument) -> None:
    """The file alone first, so that nothing stronger hides a mistake in it; then what the trainer says."""
    try:
        settings: Settings = load_settings(**document.unwrap())
    except (ValidationError, TypeError, RecursionError) as error:
        raise SettingsError(f"{error}.") from None
    training = settings.training
    profile_named(training.profile)
    locked = training.locked
    if locked.model_name is not None and locked.base_model is not None:
        check_model_name(locked.model_name, path=Path(locked.base_model).expanduser())


def _hidden(setting: str) -> str:
    variable = variable_of(setting)
    origin = origin_of(variable)
    if origin is Origin.FILE:
        return ""
    return f"{variable} is set in the {origin} and stays in force until it is removed there."
