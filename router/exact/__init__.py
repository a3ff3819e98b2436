"""Exact mode: the index holds what the engines say, for prompts tokenised as they do."""
