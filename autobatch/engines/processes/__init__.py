"""Processes on this machine: a fork server, the workers it makes, and how they end."""
