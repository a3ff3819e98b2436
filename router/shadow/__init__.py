"""What other policies would have got from the same traffic: shadow policies.

A shadow is a policy with an index and loads of its own. It is told of each request that the live
policy places, and places it among the same replicas. It never sends anything.
"""
