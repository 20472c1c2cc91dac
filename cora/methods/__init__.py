"""Ways to recommend with a language model."""
