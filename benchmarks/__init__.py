"""Measurements of speed; figures in docs/results.md come from here."""
