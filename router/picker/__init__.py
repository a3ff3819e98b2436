"""The endpoint picker: the same placement behind a data plane that is not ours, such as Envoy."""
