"""Grafana dashboards, alerts and recording rules, made by code: `python -m dashboards`."""
