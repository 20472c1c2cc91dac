"""A finished run behind HTTP: requests that come at the same time are scored in one per-sample batch."""
