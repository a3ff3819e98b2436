"""The HTML report: one file, no requests to anywhere."""
