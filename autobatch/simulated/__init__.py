"""Runners without a device: curves of memory and score, tables and recordings that are played back."""
