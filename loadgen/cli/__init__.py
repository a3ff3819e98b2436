"""The `warmroute-loadgen` command."""
