"""LLM-CF: what a language model wrote of similar, earlier rows, as one feature of a model that needs none to score."""
