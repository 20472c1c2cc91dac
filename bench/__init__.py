"""Every way to add per-sample low-rank deltas to a frozen linear, timed side by side: `pytest bench/`."""
