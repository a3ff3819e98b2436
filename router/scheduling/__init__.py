"""Chooses a replica for each request, keeps the loads, and learns from answers."""
