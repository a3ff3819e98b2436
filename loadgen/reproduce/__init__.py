"""docs/design/results.md, made anew: the gateway's policies and other gateways' rules on standard
workloads, in virtual time."""
