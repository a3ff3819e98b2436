"""A request body → the token ids the engine will make of it."""
