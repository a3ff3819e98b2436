"""KV events: what engines report of their caches, from the socket to the index."""
