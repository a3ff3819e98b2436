"""What routers share: facts about requests, sent beside the requests' way.

docs/operate/state.md describes it.
"""
