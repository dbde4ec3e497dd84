"""BATCHES -> RUN: a folder of metrics and checkpoints."""
