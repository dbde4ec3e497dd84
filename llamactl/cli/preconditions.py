"""Check what a command needs before PyTorch is imported, which takes seconds: a mistake is told at once. Then import it."""

import os
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any


def import_torch() -> None:
    """Import PyTorch, which takes seconds; a terminal says so meanwhile."""
    if "torch" not in sys.modules:
        from llamactl.cli.ui.console import progress

        with progress.status("importing PyTorch …"):
            import_module("torch")


def require_run(checkpoint: str) -> None:
    """Check that the run of a checkpoint exists; raises DataError. The path of a folder is checked where it is opened."""
    from llamactl.runs.run_dir import RunDir

    # A single word is a name, unless it is a folder with a model (`checkpoint.select.locate_checkpoint`).
    folder = Path(checkpoint)
    known = checkpoint and any(os.path.lexists(folder / file) for file in ("state.json", "config.json"))
    if len(folder.parts) <= 1 and not known and not checkpoint.startswith("hf:"):
        RunDir.from_name(checkpoint.partition("@")[0]).check_exists()


def require_settings_and_dataset(preset: str, config: Path | None, typed: list[dict[str, Any]]) -> None:
    """Check preset, settings and dataset of a new run; raises UsageError or DataError."""
    from llamactl.config.schema import build_config, load_toml, preset_settings
    from llamactl.corpus.dataset import DatasetDir

    file = load_toml(config) if config else {}
    named = {} if preset in ("", "auto") else preset_settings(preset)
    build_config([named, file, *typed])
    DatasetDir.from_name(named_dataset([file, *typed])).info()


def named_dataset(trees: Iterable[Mapping[str, Any]]) -> str:
    """Return the dataset that trees of settings name last; empty for none."""
    names = [tree["data"]["name"] for tree in trees if isinstance(tree.get("data"), dict) and "name" in tree["data"]]
    return str(names[-1]) if names else ""
