"""Targets outside the fleet that take what it cannot: what the file says, and what was spent."""
