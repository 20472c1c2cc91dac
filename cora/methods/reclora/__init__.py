"""RecLoRA: a LoRA of every pair's own, mixed from a few by a gate that reads a conventional recommender."""
