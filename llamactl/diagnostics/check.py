"""Checks of the machine and their results; no check hangs or ends in a traceback."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llamactl.errors import UserError

Verdict = Literal["fine", "note", "wrong"]


@dataclass(frozen=True)
class CheckResult:
    """The result of a check: the finding, whether it is fine, and how to fix it; `fix` is empty where nothing is to be done."""

    name: str
    verdict: Verdict
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """A check: its time limit in seconds, and the verdict and fix to report when it fails or does not finish."""

    name: str
    look: Callable[[], CheckResult]
    seconds: float = 20.0
    failing: Verdict = "wrong"
    fix: str = ""

    def carry_out(self) -> CheckResult:
        """Run the check in a thread of its own, which is abandoned if it exceeds the time limit; return the result."""
        found: list[CheckResult] = []
        thread = threading.Thread(target=lambda: found.append(self._looked()), name=self.name, daemon=True)
        thread.start()
        thread.join(self.seconds)
        return found[0] if found else CheckResult(self.name, self.failing, f"no answer in {self.seconds:g} s", self.fix)

    def _looked(self) -> CheckResult:
        try:
            return self.look()
        except UserError as error:
            return CheckResult(self.name, "wrong", f"{error.what} {error.why}".strip(), error.fix or self.fix)
        except Exception as error:  # any exception is a finding of the check
            return CheckResult(self.name, self.failing, describe_error(error), self.fix)


def describe_error(error: Exception) -> str:
    """Describe an exception in one line; the message of an OSError needs no exception name."""
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, OSError) and reason:
        return reason
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
