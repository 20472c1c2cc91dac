"""The backends, one module each with the same functions; `cora_kernels.dispatch` holds the table of them."""
