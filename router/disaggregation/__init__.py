"""Prefill and decode apart: which prefill replica, what its connector speaks, what was learned."""
