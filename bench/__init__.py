"""Every way to add per-sample low-rank deltas to a frozen linear, timed side by side: `pytest bench/`."""

import cora_kernels.waiting  # noqa: F401  Before anything imports torch, so that threads wait as in a training.
