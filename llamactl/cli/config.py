"""llamactl config: every setting, its value, where that came from and what it means."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llamactl.cli import completion
from llamactl.cli.options import PresetName, Settings, presets_to_try

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamactl.config.describe import Setting
    from llamactl.config.schema import Config, Tree

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
    from llamactl.config.describe import all_settings, setting_sources
    from llamactl.config.schema import build_config, parse_assignment
    from llamactl.errors import UsageError

    if json and toml:
        raise UsageError("--json and --toml exclude each other.")
    if run and (preset or file):
        raise UsageError("A run has its preset and its config already.", "", "Leave --preset and --config, or RUN, out.")
    layers = [
        *(of_run(run) if run else of_preset(preset, file)),
        *(("--set", parse_assignment(text)) for text in settings or []),
    ]
    chosen = build_config(tree for _, tree in layers)
    found = setting_sources(layers)
    sources = {setting: found[setting.name] for setting in all_settings() if section in (None, setting.section)}
    sources |= {setting: "worked out before step 0" for setting in sources if setting.left_open(chosen)}
    if toml:
        show_toml(chosen, section)
    elif json:
        show_json(chosen, sources)
    else:
        show_settings(chosen, sources)


def of_preset(name: str, file: Path | None) -> list[tuple[str, "Tree"]]:
    """Return the trees that a new run is made of; a file that names its preset needs no other."""
    from llamactl.config import schema

    read = schema.load_toml(file) if file else {}
    name = presets_to_try(name, read, [])[0]
    laid = [(f"preset {name}", schema.preset_settings(str(name)))]
    return [*laid, (f"file {file}", read | {"preset": name})] if file else laid


def of_run(name: str) -> list[tuple[str, "Tree"]]:
    """Return the trees that a run's config is made of: its preset, and what differs from it."""
    from llamactl.config.describe import differs_from_preset
    from llamactl.config.presets import PRESETS
    from llamactl.runs.run_dir import RunDir

    made = RunDir.from_name(name).config()
    usual = {"preset": made.preset} | PRESETS.get(made.preset, {})
    return [(f"preset {made.preset}", usual), ("the run's config", differs_from_preset(made))]


def show_settings(chosen: "Config", sources: "Mapping[Setting, str]") -> None:
    """TOML that explains itself: it could be saved and trained with as it is."""
    from rich.text import Text

    from llamactl.cli.ui.console import output
    from llamactl.config.describe import sections

    output.print(Text.assemble(("preset", "bold"), " = ", (format_value(chosen.preset), "cyan")))
    before = ""
    for setting, source in sources.items():
        if setting.section != before:
            output.print(Text(f"\n[{setting.section}]", style="bold green"))
            format_comment(sections()[setting.section].__doc__ or "")
        before = setting.section
        usual = setting.of(chosen) == setting.default
        said = (
            f"  # {source}" if usual else f"  # {source}; default {format_value(setting.default)}",
            "" if usual else "yellow",
        )
        output.print(Text.assemble("\n", (setting.key, "bold"), " = ", (format_value(setting.of(chosen)), "cyan"), said))
        format_comment(f"{setting.meaning} ({setting.takes})")


def format_comment(text: str) -> None:
    """Wrap a comment to the screen, at most WIDEST columns."""
    from textwrap import wrap

    from rich.text import Text

    from llamactl.cli.ui.console import output

    for line in wrap(text, min(WIDEST, output.width) - 4, break_on_hyphens=False):
        output.print(Text(f"#   {line}", style="dim"))


def format_value(value: object) -> str:
    """Format a value as TOML, on one line."""
    import tomli_w

    from llamactl.escape import escape_toml

    if isinstance(value, tuple):
        return f"[{', '.join(map(format_value, value))}]"
    return escape_toml(tomli_w.dumps({"x": value}).removeprefix("x = ").strip())


def show_json(chosen: "Config", sources: "Mapping[Setting, str]") -> None:
    """Print a line of JSON for each setting."""
    from dataclasses import asdict

    from llamactl.cli.ui.console import output
    from llamactl.storage.records import to_json

    for setting, source in sources.items():
        found = {"name": setting.name, "value": setting.of(chosen), "source": source}
        output.print(to_json(found | asdict(setting)))


def show_toml(chosen: "Config", section: str | None) -> None:
    """Print a file that `train --config` takes."""
    import tomli_w

    from llamactl.cli.ui.console import output
    from llamactl.escape import escape_toml

    tree = chosen.model_dump(mode="json", include={"preset", section} if section else None)
    output.print(escape_toml(tomli_w.dumps(tree)), end="")
