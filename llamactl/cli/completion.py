"""Shell completion of names of runs, checkpoints, datasets, presets and settings.

File names are repeated here instead of imported from `runs/run_dir.py`: that imports pydantic and numpy, which takes longer
than a user waits after pressing Tab.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

# Names with other characters would have to be quoted in the shell.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


def _list_folders(kind: str, complete: str) -> list[Path]:
    """List the folders of data/ or runs/ that hold a finished dataset or a run, the newest first."""
    # Path.expanduser raises for a user that does not exist, and a traceback would end up in the prompt.
    folders = Path(os.path.expanduser(os.environ.get("LLAMACTL_HOME") or ".")) / kind  # noqa: PTH111
    modified = {path.parent: _modified(path) for path in folders.glob(f"*/{complete}") if NAME.fullmatch(path.parent.name)}
    return sorted(modified, key=lambda folder: modified[folder], reverse=True)


def _modified(path: Path) -> int:
    """Return the modification time in nanoseconds; 0 for a broken link or a file that is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def runs(incomplete: str) -> list[str]:
    """Complete the name of a run, the newest first."""
    return [path.name for path in _list_folders("runs", "config.toml") if path.name.startswith(incomplete)]


def checkpoints(incomplete: str) -> list[str]:
    """Complete the name of a run and, after an @, its checkpoints: RUN@best and RUN@STEP, the last step first."""
    name, at, step = incomplete.partition("@")
    if not at:
        return runs(incomplete)
    steps = [label for path in _list_folders("runs", "config.toml") if path.name == name for label in ("best", *_steps(path))]
    return [f"{name}@{label}" for label in steps if label.startswith(step)]


def _steps(run: Path) -> Iterator[str]:
    """Yield the steps of a run's checkpoints, the last first."""
    # Sorted as text: names have eight digits. Others, such as drafts, are no checkpoints.
    names = sorted((path.name for path in (run / "checkpoints").glob("step-*")), reverse=True)
    return (str(int(name[5:])) for name in names if re.fullmatch(r"step-\d{8}", name))


def datasets(incomplete: str) -> list[str]:
    """Complete the name of a dataset, the newest first."""
    return [path.name for path in _list_folders("data", "dataset.json") if path.name.startswith(incomplete)]


def presets(incomplete: str) -> list[str]:
    """Complete the name of a preset."""
    from llamactl.config.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def settings(incomplete: str) -> list[str]:
    """Complete the name of a setting for --set, with the equals sign: `optim.lr=`."""
    from llamactl.config.schema import setting_names

    return [f"{name}=" for name in setting_names() if name.startswith(incomplete)]
