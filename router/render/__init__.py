"""Rendering and tokenising a request as its engine does."""
