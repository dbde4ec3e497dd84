"""User-facing errors: what happened, why, and the command that fixes it; each kind has its own exit code."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix; printed as three lines without a traceback."""

    code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        """Store what happened, why it happened and how to fix it; `why` and `fix` may be empty."""
        super().__init__(what, why, fix)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        """Return the parts that are not empty, one per line."""
        return "\n".join(line for line in (self.what, self.why, self.fix) if line)


class UsageError(UserError):
    """An invalid option or setting."""

    code = 2


class DataError(UserError):
    """Missing or damaged data, or a missing or damaged checkpoint."""

    code = 3


class OutOfSpace(UserError):
    """Too little memory or too little disk space."""

    code = 4


class DiskFull(OutOfSpace):
    """The disk became full during a write."""


class WriteFailed(OutOfSpace):
    """A write that the operating system refused."""


class FolderMoved(OutOfSpace):
    """A folder in use was moved, removed or replaced."""


class NoNetwork(UserError):
    """A download that is required failed."""

    code = 5


class Diverged(UserError):
    """Training diverged: losses, gradients or weights stopped being finite."""

    code = 6


class InUse(UserError):
    """Another process is writing to the same folder."""

    code = 7


class PeerFailed(UserError):
    """Another process of the same distributed run has ended, so this one cannot continue."""

    code = 8


def suggest_nearest(name: str, choices: Iterable[str]) -> str:
    """Return a sentence that names the closest valid choice, or all choices when none is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Choose from: {', '.join(known)}."
