"""A package, so that its folder is not in the path: `tests/triton` would pass for Triton where that is missing."""
