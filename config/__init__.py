"""Settings: every value a user may set, where it came from, and what to do when it is wrong."""
