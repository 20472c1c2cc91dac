"""In and out of PEFT: deltas as standard adapters, and adapters as deltas."""
