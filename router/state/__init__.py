"""What routers share: facts about requests, sent beside the requests' way. docs/state.md."""
