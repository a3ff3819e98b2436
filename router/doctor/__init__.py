"""`warmroute doctor`: what silently ruins hit rates in live engines, and the flag that mends it."""
