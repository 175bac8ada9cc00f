"""Checks all that is in deploy/, the Dockerfile and the workflow, offline: `make deploy-check`.

`recipes` renders what a user would render, `rules` says what has to be true of it, `schemas` what
Kubernetes and the custom resources allow. A fault is a line of text; `test_deploy` breaks each
value that a rule is about, and sees a fault.
"""
