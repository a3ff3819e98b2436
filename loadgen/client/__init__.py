"""The load client: HTTP, streams and sessions as fast as one core allows."""
