"""Runs and compares arms against real sockets."""
