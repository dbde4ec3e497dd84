"""Checks of a machine, as `llamactl doctor` runs them."""
