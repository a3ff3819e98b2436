"""Tenants: who asks, what they may use and how much of it, and how their caches are kept apart."""
