"""Checks deploy/, the Dockerfile and the workflows, offline: `make deploy-check`.

`recipes` renders what a user would render. `test_facts` asserts what must be true of that, and
`schemas` that Kubernetes and the custom resources allow it. `recorded.yaml` has what the load
balancer's controller built from the same objects. `test_faults` puts faults into a copy of deploy/:
each must fail the fact that it concerns.
"""
