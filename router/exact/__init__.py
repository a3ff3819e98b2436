"""Exact mode: the index holds what the engines report, for prompts tokenised as they do it."""
