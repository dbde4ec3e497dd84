"""Retention of checkpoints: only valid ones count; a damaged one is renamed and kept."""

from pathlib import Path

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import select as checkpoint_select
from llamactl.runs.run_dir import RunDir
from llamactl.storage import atomic

# Of each file of a checkpoint: name, inode, bytes, modification time in nanoseconds.
Signature = tuple[tuple[str, int, int, int], ...]


class Retention:
    """Finds the checkpoint to resume from and prunes old ones; hashes each checkpoint only once."""

    def __init__(self, run: RunDir, keep: int, keep_every: int) -> None:
        """Keep the newest `keep`, the best, and those at multiples of `keep_every` (0: none)."""
        self._run, self._keep, self._keep_every = run, keep, keep_every
        # Valid checkpoints as they were when they were verified.
        self._verified: dict[Path, Signature] = {}

    def newest(self) -> tuple[Path | None, tuple[str, ...]]:
        """Find the newest valid checkpoint, rename newer ones, which are damaged, and describe their damage."""
        # Folders that a killed process was still writing or removing.
        atomic.remove_partial(self._run.checkpoints)
        path, damaged = checkpoint_select.find_newest(self._run)
        if path:
            self.trust(path)
        # Renamed, so that they don't count among the newest and stay for whoever wants to look.
        newer = [item for item in map(self._run.checkpoint, reversed(self._run.steps())) if path is None or item > path]
        moved = [atomic.set_aside(item).name for item in newer]
        return path, tuple(f"{text} It is now {name}." for text, name in zip(damaged, moved, strict=False))

    def trust(self, path: Path) -> None:
        """Remember that a checkpoint was just verified or written."""
        self._verified[path] = _signature(path)

    def prune(self) -> None:
        """Remove checkpoints that the rules of this run no longer keep."""
        checkpoint_select.prune_checkpoints(self._run, self._keep, self._keep_every, self._is_sound)

    def _is_sound(self, path: Path) -> bool:
        """Check whether a checkpoint is valid, hashing it only if a file changed since the last time."""
        if self._verified.get(path) != _signature(path) and checkpoint_format.is_sound(path):
            self.trust(path)
        return self._verified.get(path) == _signature(path)


def _signature(path: Path) -> Signature:
    """Return what changes when a file of a checkpoint changes, without reading any."""
    stats = ((file.name, file.lstat()) for file in sorted(path.glob("*")))
    return tuple((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in stats)
