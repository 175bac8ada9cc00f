"""Callers and faults at random: `python -m tests.soak`."""
