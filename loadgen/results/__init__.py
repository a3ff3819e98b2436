"""What runs measured: records, metrics, results files."""
