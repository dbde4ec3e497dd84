"""Observers of the events of training: the log on disk, trackers."""
