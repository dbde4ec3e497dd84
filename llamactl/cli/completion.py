"""What the shell offers when Tab is pressed: names, from the disk alone and at once.

Names of files are spelled here and not asked of `artifacts.py`: that needs pydantic and numpy, which take longer to import than
a person waits for a key.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")  # nothing that a shell could take for something else


def _named(kind: str, complete: str) -> list[Path]:
    """The folders of data/ or runs/ that hold a file which says that they are one, the newest first."""
    folders = Path(os.environ.get("LLAMACTL_HOME", ".")) / kind
    found = [path for path in folders.glob(f"*/{complete}") if NAME.fullmatch(path.parent.name)]
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)]


def runs(incomplete: str) -> list[str]:
    """Runs, the newest first."""
    return [path.name for path in _named("runs", "config.toml") if path.name.startswith(incomplete)]


def checkpoints(incomplete: str) -> list[str]:
    """Runs, and after an @ the checkpoints of one: RUN@best and RUN@STEP, the last step first."""
    name, at, step = incomplete.partition("@")
    if not at:
        return runs(incomplete)
    steps = [word for path in _named("runs", "config.toml") if path.name == name for word in ("best", *_steps(path))]
    return [f"{name}@{word}" for word in steps if word.startswith(step)]


def _steps(run: Path) -> Iterator[str]:
    names = sorted((path.name for path in (run / "checkpoints").glob("step-*")), reverse=True)
    return (str(int(name[5:])) for name in names if re.fullmatch(r"step-\d{8}", name))


def datasets(incomplete: str) -> list[str]:
    """Complete datasets, the newest first."""
    return [path.name for path in _named("data", "dataset.json") if path.name.startswith(incomplete)]


def presets(incomplete: str) -> list[str]:
    """The presets."""
    from llamactl.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def settings(incomplete: str) -> list[str]:
    """Settings as --set takes them, up to their values: `optim.lr=`."""
    from llamactl.config import knobs

    return [f"{name}=" for name in knobs() if name.startswith(incomplete)]
