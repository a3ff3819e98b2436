"""The `warmroute` command."""
