"""Measurements: speed and memory beside alternatives, and failed requests in rollouts."""
