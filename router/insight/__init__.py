"""What could have been reused, what was, and why they differ."""
