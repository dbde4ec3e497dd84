"""Adapters for experiment trackers: TensorBoard, Weights & Biases, trackio.

None of them prompts the user, and all data stays on this machine unless the user has configured otherwise; `tracker_thread.py`
isolates the run from them.
"""

import html
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, Protocol

from llamactl.runs.run_dir import RunDir
from llamactl.storage.records import to_json
from llamactl.training.events import Evaluated, Event, Progress, Resumed, RolledBack, Sampled, Stepped, Validated

PROJECT = "llamactl"
FLUSH_EVERY = 10  # seconds


class Tracker(Protocol):
    """An experiment tracker that shows the events of a run."""

    def follow(self, event: Event) -> None:
        """Record an event."""

    def close(self) -> None:
        """Write what is left and close."""


def event_scalars(event: Event) -> dict[str, float]:
    """Return the metrics of a step or a validation by name, and the tokens so far; empty for other events."""
    # An evaluation is on more text than the validations before it: it would bend their curve.
    if not isinstance(event, Stepped | Validated) or isinstance(event, Evaluated):
        return {}
    group = "train" if isinstance(event, Stepped) else "validation"
    others = {field.name for field in fields(Progress)} | {"eval_tokens", "loss_error"}
    return {"tokens": event.tokens} | {f"{group}/{name}": value for name, value in asdict(event).items() if name not in others}


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, run: RunDir, config: Mapping[str, Any]) -> None:
        """Prepare the writer; nothing is written before the first event, whose step tells which earlier steps are kept."""
        from torch.utils import tensorboard

        self._open: Callable[..., Any] = tensorboard.SummaryWriter
        self._folder, self._config = run.path / "tensorboard", config
        self._writer: Any = None

    def follow(self, event: Event) -> None:
        """Record scalars and samples by step; after a resume or a rollback, steps that will be repeated are removed."""
        back = isinstance(event, Resumed | RolledBack)
        if back or self._writer is None:
            self._begin(event.step + back)
        for name, value in event_scalars(event).items():
            self._writer.add_scalar(name, value, event.step)
        if isinstance(event, Sampled):
            self._writer.add_text(f"samples/{event.prompt}", _block(event.prompt + event.text), event.step)

    def _begin(self, step: int) -> None:
        self.close()
        again = step if self._folder.exists() else None
        self._writer = self._open(str(self._folder), purge_step=again, flush_secs=FLUSH_EVERY)
        if again is None:
            self._writer.add_text("config", _block(to_json(self._config, indent=1)))

    def close(self) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()


class WeightsAndBiases:
    """A run of the project llamactl; offline, in the run's folder, unless WANDB_MODE says otherwise: `wandb sync`."""

    def __init__(self, run: RunDir, config: Mapping[str, Any]) -> None:
        """Create or resume the run; raises RuntimeError where wandb would prompt for a key."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read on import; this program reports its errors
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
        """Record scalars and samples by step."""
        shown: dict[str, Any] = {**event_scalars(event)}
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
        """Create or resume the run."""
        os.environ.setdefault("TRACKIO_DIR", str((run.path / "trackio").absolute()))  # trackio reads it on import
        import trackio

        self._markdown = trackio.Markdown
        self._run: Any = trackio.init(
            project=PROJECT, name=run.path.name, resume="allow", config=dict(config), embed=False, auto_log_gpu=False,
            auto_log_cpu=False,
        )  # fmt: skip

    def follow(self, event: Event) -> None:
        """Record scalars and samples by step."""
        shown: dict[str, Any] = {**event_scalars(event)}
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
EXTRAS = {"tensorboard": "track"}  # trackers whose pip extra has another name


def _block(text: str) -> str:
    """Indent text as a Markdown code block, which is shown unchanged."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _identity(run: RunDir) -> str:
    """Return an identifier that is unique even if a later run has the same name.

    It contains the modification time of the run's environment file, which is written only once.
    """
    return f"{run.path.name}-{run.environment_path.stat().st_mtime_ns:x}"
