"""The monitoring endpoint of a node: liveness, readiness and metrics, over HTTP."""
