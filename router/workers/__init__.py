"""Several router processes on one host, as one: a supervisor and its workers."""
