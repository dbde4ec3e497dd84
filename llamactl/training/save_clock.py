"""Save by time, so that a crash loses at most `train.save_minutes` of work."""

import time


class SaveClock:
    """Clock of the time since the last checkpoint."""

    def __init__(self, minutes: float) -> None:
        """Allow `minutes` of unsaved work; 0 turns the clock off."""
        self._limit = 60 * minutes  # seconds
        self.restart()

    def restart(self) -> None:
        """Start counting from now, when all work is saved."""
        self._saved = self._checked = time.monotonic()

    def is_due(self) -> bool:
        """Check whether another step as long as the last one would exceed the limit."""
        now = time.monotonic()
        # Called once per step, so the time since the last call is the last step, with its validation.
        step, self._checked = now - self._checked, now
        return 0 < self._limit <= now - self._saved + step
