"""Worked examples, each `python -m cora.examples.NAME`, under a minute on two CPU cores, with nothing to download."""
