"""Where a request goes: match, choose, book, learn."""
