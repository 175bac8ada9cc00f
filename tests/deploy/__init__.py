"""Checks deploy/, the Dockerfile and the workflows, offline: `make deploy-check`.

`recipes` renders what a user would render, over the gateways in `gateways` and a chart that
stands in for Istio's. `test_facts` asserts what must be true of that, and `schemas` that
Kubernetes and the custom resources allow it. `expected.yaml` has what the recipes add, and
`recorded.yaml` what the load balancer's controller built from the same objects. A fact names
faults that it must notice: `test_faults` puts each into a copy of deploy/.
"""
