"""Training: from batches to a run, a folder of metrics and checkpoints."""
