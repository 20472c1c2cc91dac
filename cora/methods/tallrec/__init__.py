"""TALLRec: plain LoRA on text alone, the baseline without collaborative vectors."""
