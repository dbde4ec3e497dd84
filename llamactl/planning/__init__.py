"""Estimate a run before it starts: FLOPs, memory, batch size, time, loss."""
