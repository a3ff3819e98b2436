"""What engines say their caches hold: KV events, from the socket to the index."""
