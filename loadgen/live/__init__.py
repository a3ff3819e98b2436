"""Runs and comparisons against real sockets."""
