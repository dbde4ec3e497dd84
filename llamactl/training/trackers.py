"""Runs as others show them: TensorBoard, Weights & Biases, trackio.

None asks for anything, and all stay on this machine unless its owner has said otherwise; `followers.py` keeps them off the run.
"""

import html
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, Protocol

from llamactl.artifacts import RunDir
from llamactl.training.events import Event, Moment, Resumed, RolledBack, Sampled, Stepped, Validated

PROJECT = "llamactl"
FLUSH_EVERY = 10  # seconds


class Tracker(Protocol):
    """Something that shows a run elsewhere."""

    def follow(self, event: Event) -> None:
        """Show an event."""

    def close(self) -> None:
        """Write what is left."""


def scalars(event: Event) -> dict[str, float]:
    """The figures of a step or a validation by name, with the tokens so far; empty for other events."""
    if not isinstance(event, Stepped | Validated):
        return {}
    group = "train" if isinstance(event, Stepped) else "validation"
    when = {field.name for field in fields(Moment)}
    return {"tokens": event.tokens} | {f"{group}/{name}": value for name, value in asdict(event).items() if name not in when}


class TensorBoard:
    """Files in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, run: RunDir, config: Mapping[str, Any]) -> None:
        """Nothing is written before the first event, which says what of an earlier attempt still holds."""
        from torch.utils import tensorboard

        self._open: Callable[..., Any] = tensorboard.SummaryWriter
        self._folder, self._config = run.path / "tensorboard", config
        self._writer: Any = None

    def follow(self, event: Event) -> None:
        """Scalars and samples by step; steps that will be done again are taken out."""
        back = isinstance(event, Resumed | RolledBack)
        if back or self._writer is None:
            self._begin(event.step + back)
        for name, value in scalars(event).items():
            self._writer.add_scalar(name, value, event.step)
        if isinstance(event, Sampled):
            self._writer.add_text(f"samples/{event.prompt}", _block(event.prompt + event.text), event.step)

    def _begin(self, step: int) -> None:
        self.close()
        again = step if self._folder.exists() else None
        self._writer = self._open(str(self._folder), purge_step=again, flush_secs=FLUSH_EVERY)
        if again is None:
            self._writer.add_text("config", _block(json.dumps(self._config, indent=1)))

    def close(self) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()


class WeightsAndBiases:
    """A run of the project llamactl; offline, in the run's folder, unless WANDB_MODE says otherwise: `wandb sync`."""

    def __init__(self, run: RunDir, config: Mapping[str, Any]) -> None:
        """Begin the run, or go on with it; raises RuntimeError where it would ask for a key."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported; its errors are told here
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError("nobody is logged in; set WANDB_API_KEY, or leave WANDB_MODE out")
        self._html = wandb.Html
        self._run: Any = wandb.init(
            project=PROJECT, name=run.path.name, id=_identity(run), resume="allow", dir=str(run.path), mode=mode,
            config=dict(config), settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip

    def follow(self, event: Event) -> None:
        """Scalars and samples by step."""
        shown: dict[str, Any] = {**scalars(event)}
        if isinstance(event, Sampled):
            shown[f"samples/{event.prompt}"] = self._html(f"<pre>{html.escape(event.prompt + event.text)}</pre>")
        if shown:
            self._run.log(shown, step=event.step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio:
    """A run of the project llamactl, in the run's folder unless TRACKIO_DIR says otherwise: `trackio show`."""

    def __init__(self, run: RunDir, config: Mapping[str, Any]) -> None:
        """Begin the run, or go on with it."""
        os.environ.setdefault("TRACKIO_DIR", str((run.path / "trackio").absolute()))  # read when it is imported
        import trackio

        self._markdown = trackio.Markdown
        self._run: Any = trackio.init(
            project=PROJECT, name=run.path.name, resume="allow", config=dict(config), embed=False, auto_log_gpu=False,
            auto_log_cpu=False,
        )  # fmt: skip

    def follow(self, event: Event) -> None:
        """Scalars and samples by step."""
        shown: dict[str, Any] = {**scalars(event)}
        if isinstance(event, Sampled):
            shown[f"samples/{event.prompt}"] = self._markdown(_block(event.prompt + event.text))
        if shown:
            self._run.log(shown, step=event.step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


TRACKERS: dict[str, Callable[[RunDir, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio,
}  # fmt: skip
EXTRAS = {"tensorboard": "track"}  # of those whose extra has another name than they have


def _block(text: str) -> str:
    """Text as a block that Markdown leaves as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _identity(run: RunDir) -> str:
    """What names a run for good, also when another has its name later: its environment is written once."""
    return f"{run.path.name}-{run.environment_path.stat().st_mtime_ns:x}"
