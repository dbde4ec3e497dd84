"""Check what a command needs before PyTorch is imported, which takes seconds: a mistake is told at once. Then import it."""

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamactl.checkpoint.format import State


def import_torch() -> None:
    """Import PyTorch, which takes seconds; a terminal says so meanwhile."""
    if "torch" not in sys.modules:
        from llamactl.cli.ui.console import progress
        from llamactl.hardware.busy import respect_quota

        respect_quota()
        with progress.status("importing PyTorch …"):
            import_module("torch")


def import_torch_and_verify(checkpoint: str) -> "dict[Path, State]":
    """Import PyTorch, and verify a checkpoint meanwhile; return its state by its path, or nothing.

    To hash 600 MB takes half as long as the import, and another core does it.
    """
    from llamactl.checkpoint.format import verify_model
    from llamactl.checkpoint.model_hub import PREFIX
    from llamactl.checkpoint.select import locate_checkpoint

    verified: dict[Path, State] = {}

    def verify(path: Path) -> "State":
        verified[path] = verify_model(path)
        return verified[path]

    def find_and_verify() -> None:
        # What fails here fails again where the checkpoint is opened, and is told there.
        with suppress(Exception):
            path = locate_checkpoint(checkpoint, verify)
            if path not in verified:
                verify(path)

    # A download has its own messages.
    if checkpoint.startswith(PREFIX):
        import_torch()
        return {}
    thread = Thread(target=find_and_verify, daemon=True)
    thread.start()
    import_torch()
    thread.join()
    return verified


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
