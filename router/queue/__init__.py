"""When a request is sent: the door for new sessions, a lane for each replica, refusal in time."""
