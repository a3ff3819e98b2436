"""What the engines hold, as their events tell. In memory, no I/O."""
