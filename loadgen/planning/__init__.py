"""What a workload would take: fleets that hold objectives, and what would have been otherwise."""
