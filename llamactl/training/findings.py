"""What a look at the machine finds: how things are, and what mends them; no look hangs or ends in a traceback."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llamactl.errors import UserError

Verdict = Literal["fine", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """What was found, whether it is fine, and what mends it; `fix` is empty where there is nothing to do."""

    name: str
    verdict: Verdict
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """A look at one thing: how long it may take, in seconds, and what it means when it fails or does not end."""

    name: str
    look: Callable[[], Finding]
    seconds: float = 20.0
    failing: Verdict = "wrong"
    fix: str = ""

    def carry_out(self) -> Finding:
        """Look, in a thread of its own, which is left behind when it does not end."""
        found: list[Finding] = []
        thread = threading.Thread(target=lambda: found.append(self._looked()), name=self.name, daemon=True)
        thread.start()
        thread.join(self.seconds)
        return found[0] if found else Finding(self.name, self.failing, f"no answer in {self.seconds:g} s", self.fix)

    def _looked(self) -> Finding:
        try:
            return self.look()
        except UserError as error:
            return Finding(self.name, "wrong", f"{error.what} {error.why}".strip(), error.fix or self.fix)
        except Exception as error:  # whatever it is, it is what was looked for
            return Finding(self.name, self.failing, described(error), self.fix)


def described(error: Exception) -> str:
    """An exception in a line; the system's refusals are sentences by themselves."""
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, OSError) and reason:
        return reason
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
