"""Alembic migrations of the registry, run by `registry.schema.upgrade`."""
