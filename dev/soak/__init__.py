"""Callers and faults at random: `python -m dev.soak`."""
