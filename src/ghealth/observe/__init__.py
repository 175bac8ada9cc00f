"""Sinks that receive events: the log, the metrics and the history."""
