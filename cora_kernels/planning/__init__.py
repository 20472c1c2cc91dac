"""Which GPU kernels run a problem, and what they cost: rates of GPUs, tile sizes, the cost rule, what was tuned."""
