"""The Kubernetes shell: watches executions and their Pods, lets the core decide, and applies what it decides."""
