"""OpenTelemetry traces, from the client through queue and decision to the engine.

The router keeps trace ids and times, and hands each finished request to a process of its own, which
makes spans of it and exports them. So the SDK's work is not on the requests' core.
"""
