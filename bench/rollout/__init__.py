"""Rollouts and interruptions behind a model of an ALB, request by request."""
