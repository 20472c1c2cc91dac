"""CoRA: the weights of each sample are generated from collaborative vectors of its user and item."""
