"""The admin port: metrics, health, readiness, the fleet, explanations, and calls to engines."""
