"""Checks all of deploy/, the Dockerfile and the workflows, offline: `make deploy-check`.

`recipes` renders what a user would render, `rules` has what must be true of it, `schemas` what
Kubernetes and the custom resources allow. `controller` is a model of the load balancer's
controller, `targets` the target groups that must result, `names` resolves selectors and names.
A fault is a line of text; the tests break each value that a rule is about, and expect a fault.
"""
