"""Profiles: how a plain row is put to a model, and how its reply becomes plain again."""
