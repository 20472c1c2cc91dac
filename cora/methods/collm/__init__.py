"""CoLLM: collaborative vectors as soft tokens within the prompt, the baseline that tells the model in its input."""
