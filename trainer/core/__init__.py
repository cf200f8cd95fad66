"""The training engine and what it stands on."""
