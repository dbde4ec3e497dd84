"""Rules for resuming a run: one for settings, whether typed or edited in config.toml, and one for its dataset."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llamactl.checkpoint.format import State
from llamactl.checkpoint.select import read_newest_state
from llamactl.config.schema import Config, Tree, build_config
from llamactl.corpus.dataset import DatasetDir
from llamactl.errors import DataError, UsageError, UserError
from llamactl.runs.run_dir import RunDir
from llamactl.storage.home import home_folder

# Settings of [train] that may change: device, parallelism, memory, and how often it evaluates and saves.
MAY_CHANGE = {
    "device", "precision", "parallel", "micro_batch", "compile", "activation_checkpointing", "deterministic",
    "eval_every", "save_every", "save_minutes", "keep_last", "keep_every", "patience", "prompts", "sample_tokens",
}  # fmt: skip


def config_of_resumed_run(folder: RunDir, typed: Sequence[Tree]) -> Config:
    """Lay what may change over the run's own config; raises UsageError for anything else.

    What was typed and what was edited in its config.toml follow the same rule.
    """
    before, state = folder.config(), read_newest_state(folder)
    after = locate_dataset(build_config([before.model_dump(), *typed]), folder, state)
    known = known_settings(folder, state)
    edited: Path | None = folder.config_path
    with suppress(UsageError):
        check_changed_settings(known, before)
        edited = None
    check_changed_settings(known, after, edited)
    if after.train.tokens > before.train.tokens and state and 0 < after.train.patience <= state.validations_since:
        what = f"{folder.path.name} ended early: {state.validations_since} validations had no lower loss."
        fix = f"To train on: llamactl train --resume {folder.path.name} --tokens {after.train.tokens} --patience 0"
        raise UsageError(what, "With a larger budget it would end at once again.", fix)
    return after


def check_changed_settings(before: Mapping[str, Any], config: Config, edited: Path | None = None) -> tuple[str, ...]:
    """List the settings that changed since `before`; raises UsageError if one of them may not change.

    `edited` is the config file, if the changes come from it and not from the command line. Settings that only one side has,
    because another version wrote it, are ignored.
    """
    allowed: list[str] = []
    refused: list[str] = []
    for section, table in config.model_dump(mode="json").items():
        old = before.get(section, table)
        pairs = {f"{section}.{key}": (old[key], table[key]) for key in table if key in old} if isinstance(table, dict) else {}
        for name, (was, now) in (pairs or {section: (old, table)}).items():
            if was != now:
                (allowed if _may_change(name, was, now) else refused).append(f"{name}: {was} -> {now}")
    if refused:
        why = f"{edited} was edited since its newest checkpoint was saved." if edited else "It would be another run."
        fix = "Keep it unchanged" if not edited else "Restore it"
        fix += ", or start a new run without --resume. The budget, train.tokens, may grow."
        raise UsageError(f"A resumed run can't change {', '.join(refused)}.", why, fix)
    return tuple(allowed)


def known_settings(run: RunDir, state: State | None) -> Mapping[str, Any]:
    """Return the settings a run was trained with: those in its newest checkpoint, else those of its config.toml."""
    return state.config if state and state.config else run.config().model_dump(mode="json")


def _may_change(name: str, was: Any, now: Any) -> bool:
    section, _, key = name.partition(".")
    # A dataset may be renamed: `check_same_data` compares its digest.
    return name == "data.name" or (section == "train" and key in MAY_CHANGE) or (name == "train.tokens" and now > was)


def steps_done(run: RunDir, config: Config) -> int:
    """Return how many steps of its budget a run has done: all of them if its patience has ended it."""
    state = read_newest_state(run)
    if state is None:
        return 0
    is_out_of_patience = 0 < config.train.patience <= state.validations_since
    return -(-config.train.tokens // config.train.tokens_per_step) if is_out_of_patience else state.step


def locate_dataset(config: Config, run: RunDir, state: State | None) -> Config:
    """Set the dataset to resume on: the one of the config, or if that is missing, one with the same digest.

    Raises DataError if the dataset has another digest than the one that the run was trained on.
    """
    digest = trained_on(run, state)
    name = config.data.name
    available = _dataset_digests([name] if name else [])
    if digest and not available:
        # It may have been renamed.
        available = {item: value for item, value in _dataset_digests(_dataset_names()).items() if value == digest}
        name = next(iter(available), name)
    if digest and available and available[name] != digest:
        matches = [item for item, value in _dataset_digests(_dataset_names()).items() if value == digest]
        fix = f"Resume on the same data: --data {matches[0]}" if matches else "Prepare it as it was"
        fix += ", or start a new run from the weights: llamactl train --init-from RUN"
        raise DataError(f"The dataset {name} is not the one that this run was trained on.", "Its digest differs.", fix)
    return config.model_copy(update={"data": config.data.model_copy(update={"name": name})})


def trained_on(run: RunDir, state: State | None) -> str:
    """Read the digest of the dataset that a run was trained on; empty if unknown."""
    environment: Mapping[str, Any] = state.environment if state else {}
    if not environment:
        # A run that was stopped before its first checkpoint has it only in its folder.
        with suppress(UserError):
            environment = run.environment()
    dataset = environment.get("dataset")
    return str(dataset.get("digest", "")) if isinstance(dataset, Mapping) else ""


def _dataset_names() -> list[str]:
    return sorted(path.parent.name for path in (home_folder() / "data").glob("*/dataset.json"))


def _dataset_digests(names: list[str]) -> dict[str, str]:
    """Read the digests of datasets by name, except missing and damaged ones."""
    digests = {}
    for name in names:
        with suppress(UserError):
            digests[name] = DatasetDir.from_name(name).info().digest
    return digests
