"""A Kubernetes cluster for tests: kind where there is a Docker engine, a single node of our own where there is none.

`python -m oet_cluster` is its user interface; docs/how-to/test-cluster.md tells how to use it.
"""
