"""Engine parameters from measurements of a live engine."""
