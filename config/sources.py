"""Where settings are read from: variables of the process, `.env` and `tandem.toml`."""

from __future__ import annotations

from dotenv import dotenv_values

from config.errors import SettingsError

PREFIX = "TANDEM_"
CONFIG_FILE = "tandem.toml"
DOTENV_FILE = ".env"


def read_dotenv() -> dict[str, str | None]:
    """The lines of `.env` in this directory; none where there is no such file."""
    try:
        return dotenv_values(DOTENV_FILE, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(
            f"{DOTENV_FILE} cannot be read: {reason}.", remedy="Mend it, save it as UTF-8, or remove it."
        ) from None


def variable_of(setting: str) -> str:
    """The environment variable of a setting, given by its dotted name."""
    return PREFIX + setting.replace(".", "__").upper()


def setting_at(variable: str) -> str:
    """The dotted name that an environment variable stands for."""
    return variable[len(PREFIX) :].lower().replace("__", ".")
