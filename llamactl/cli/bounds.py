"""Bounds of numbers that are typed, as options and between prompts; those of a sampler are its own."""

import math

import typer

MOST_TOKENS, LARGEST_SEED = 10_000_000, 2**63 - 1
BOUNDS = {"max-new-tokens": (1, MOST_TOKENS), "seed": (0, LARGEST_SEED)}


def check_finite(value: float | None) -> float | None:
    """Return the number of an option; raises BadParameter for infinity, which is above any least one, and for nan."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("It is a finite number.")
    return value
