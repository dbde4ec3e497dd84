"""Checkpoints: their format, saving, loading, selection and pruning."""
