"""A frozen language model with deltas per sample; it knows no user, item or rating."""
