"""SettingsError is all that can go wrong here: it names the setting, its value, and the remedy."""

from registry.errors import TandemError


class SettingsError(TandemError):
    """A setting that is unknown, malformed or out of range."""
