"""Watches a run without touching it: held-out rows, alerts, and what other tools are told."""
