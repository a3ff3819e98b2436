"""What people see of results: live view, tables, HTML report."""
