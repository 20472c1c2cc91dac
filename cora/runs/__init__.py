"""Runs: from data to numbers."""
