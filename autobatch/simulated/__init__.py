"""Runners without a device: formulas for memory and score, and tables and recordings that are replayed."""
