"""KV events: from an engine's sockets to decoded batches in order."""
