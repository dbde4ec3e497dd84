"""llamactl config: every setting, its value, where that came from and what it means."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llamactl.cli import completion
from llamactl.cli.settings import PresetName, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamactl.config import Config, Tree
    from llamactl.knobs import Knob

RUN_HELP = "Show the settings of a run, and which of them are not its preset's."
WIDEST = 100  # characters of a line of explanation


def config(
    run: Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP, show_default=False, autocompletion=completion.runs)] = "",
    preset: PresetName = "",
    file: Annotated[Path | None, typer.Option("--config", help="A config.toml to start from.", show_default=False)] = None,
    settings: Settings = None,
    section: Annotated[
        Literal["model", "data", "optim", "schedule", "train"] | None,
        typer.Option(metavar="TABLE", help="model, data, optim, schedule or train.", show_default="all"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print each setting as a line of JSON.")] = False,
    toml: Annotated[bool, typer.Option("--toml", help="Print a file that train --config takes, without comments.")] = False,
) -> None:
    """Show every setting of a run: value, source, meaning."""
    from llamactl.config import assignment, build
    from llamactl.errors import BadUsage
    from llamactl.knobs import every, sources

    if json and toml:
        raise BadUsage("--json and --toml exclude each other.")
    if run and (preset or file):
        raise BadUsage("A run has its preset and its config already.", "", "Leave --preset and --config, or RUN, out.")
    layers = [*(of_run(run) if run else of_preset(preset, file)), *(("--set", assignment(text)) for text in settings or [])]
    chosen = build(tree for _, tree in layers)
    found = sources(layers)
    knobs = {knob: found[knob.name] for knob in every() if section in (None, knob.section)}
    knobs |= {knob: "worked out before step 0" for knob in knobs if knob.left_open(chosen)}
    if toml:
        show_toml(chosen, section)
    elif json:
        show_json(chosen, knobs)
    else:
        show(chosen, knobs)


def of_preset(name: str, file: Path | None) -> list[tuple[str, "Tree"]]:
    """What a new run would be made of; a file that names its preset needs none."""
    from llamactl import config as settings

    read = settings.load(file) if file else {}
    name = name or read.get("preset", "150m")
    laid = [(f"preset {name}", settings.preset(str(name)))]
    return [*laid, (f"file {file}", read | {"preset": name})] if file else laid


def of_run(name: str) -> list[tuple[str, "Tree"]]:
    """What a run's config is made of: its preset, and what the run has instead."""
    from llamactl.artifacts import RunDir
    from llamactl.knobs import difference
    from llamactl.presets import PRESETS

    made = RunDir.named(name).config()
    usual = {"preset": made.preset} | PRESETS.get(made.preset, {})
    return [(f"preset {made.preset}", usual), ("the run's config", difference(made))]


def show(chosen: "Config", knobs: "Mapping[Knob, str]") -> None:
    """TOML that explains itself: it could be saved and trained with as it is."""
    from rich.text import Text

    from llamactl.cli.screen import output
    from llamactl.knobs import sections
    from llamactl.spelling import safe

    output.print(Text.assemble(("preset", "bold"), " = ", (written(chosen.preset), "cyan")))
    before = ""
    for knob, source in knobs.items():
        if knob.section != before:
            output.print(Text(f"\n[{knob.section}]", style="bold green"))
            explain(sections()[knob.section].__doc__ or "")
        before = knob.section
        usual = knob.of(chosen) == knob.default
        said = (
            f"  # {safe(source)}" if usual else f"  # {safe(source)}; default {written(knob.default)}",
            "" if usual else "yellow",
        )
        output.print(Text.assemble("\n", (knob.key, "bold"), " = ", (written(knob.of(chosen)), "cyan"), said))
        explain(f"{knob.meaning} ({knob.takes})")


def explain(text: str) -> None:
    """A comment, as wide as the screen and not wider than is good to read."""
    from textwrap import wrap

    from rich.text import Text

    from llamactl.cli.screen import output

    for line in wrap(text, min(WIDEST, output.width) - 4, break_on_hyphens=False):
        output.print(Text(f"#   {line}", style="dim"))


def written(value: object) -> str:
    """A value as TOML, in a line; on a terminal without what could steer it."""
    import tomli_w

    from llamactl.cli.screen import output
    from llamactl.spelling import safe

    if isinstance(value, tuple):
        return f"[{', '.join(map(written, value))}]"
    text = tomli_w.dumps({"x": value}).removeprefix("x = ").strip()
    return safe(text) if output.is_terminal else text


def show_json(chosen: "Config", knobs: "Mapping[Knob, str]") -> None:
    """A line for each setting."""
    from dataclasses import asdict
    from json import dumps

    from llamactl.cli.screen import output

    for knob, source in knobs.items():
        found = {"name": knob.name, "value": knob.of(chosen), "source": source}
        output.print(dumps(found | asdict(knob)), markup=False)


def show_toml(chosen: "Config", section: str | None) -> None:
    """What `train --config` takes."""
    import tomli_w

    from llamactl.cli.screen import output
    from llamactl.spelling import safe

    tree = chosen.model_dump(mode="json", include={"preset", section} if section else None)
    text = tomli_w.dumps(tree)
    output.print(safe(text) if output.is_terminal else text, markup=False, end="")
