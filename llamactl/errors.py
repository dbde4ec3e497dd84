"""Errors for people: what happened, why, and the command that mends it; one exit code per kind."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the person at the keyboard can mend; shown in three lines, without a traceback."""

    code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        """Say `what` happened, `why`, and how to `fix` it; the last two may be empty."""
        super().__init__(what, why, fix)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        """The lines that are not empty."""
        return "\n".join(line for line in (self.what, self.why, self.fix) if line)


class BadUsage(UserError):
    """An option or a setting that makes no sense."""

    code = 2


class BadData(UserError):
    """Data or a checkpoint is missing or damaged."""

    code = 3


class NoRoom(UserError):
    """It does not fit into memory or onto the disk."""

    code = 4


class DiskFull(NoRoom):
    """The disk filled up while something was written."""


class CantWrite(NoRoom):
    """The disk, or its owner, refuses."""


class NoNetwork(UserError):
    """Something must be downloaded and can't be."""

    code = 5


class Diverged(UserError):
    """Training left the numbers that make sense."""

    code = 6


class InUse(UserError):
    """Another process is writing there."""

    code = 7


class PeerLost(UserError):
    """Another process of the same run is gone, so that this one can't go on."""

    code = 8


def nearest(name: str, choices: Iterable[str]) -> str:
    """A sentence that names the closest valid choice, or all of them when none is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Choose from: {', '.join(known)}."
