"""The ports of `oet_crds.ports` over a Kubernetes API server: executions are custom resources, logs are their Pods'."""
