"""Render a report as one HTML file without network, fonts or libraries; nothing read from disk is interpreted as markup."""

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files

from llamactl import __version__
from llamactl.config.schema import dump_toml
from llamactl.escape import embed_json, escape_control_chars, escape_html
from llamactl.report.plots import COLOURS
from llamactl.report.results import compare_with_plan, differing_settings, headline_results
from llamactl.report.run_data import RunData
from llamactl.report.scores import render_scores
from llamactl.report.thinning import keep_extremes, spread_evenly
from llamactl.runs.metrics_log import Columns

LARGEST = 2_000_000  # bytes of a page
FINEST, COARSEST = 4_000, 50  # points of a curve

# This content security policy forbids the browser to fetch anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

X_BUTTONS = {"step": "steps", "tokens": "tokens", "seconds": "time", "flops": "FLOPs"}
Y_BUTTONS = {"loss": "nats per token", "bits_per_byte": "bits per byte"}


def render_report(subjects: Sequence[RunData]) -> str:
    """Render the report of some runs as HTML of at most 2 MB where possible.

    Curves and samples are thinned until the page fits; curves keep their extremes.
    """
    most = FINEST
    while len((made := _page(subjects, most)).encode()) >= LARGEST and most > COARSEST:
        most //= 2
    return made


def _page(subjects: Sequence[RunData], most: int) -> str:
    title = ", ".join(subject.summary.name for subject in subjects)
    first = (_results(subjects), _chart(subjects))
    opening = "".join(first if len(subjects) == 1 else reversed(first))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape_html(title)} – llamactl</title><style>{_part("page.css")}</style></head>
<body><header><h1>{escape_html(title)}</h1>{"".join(map(_origin, subjects))}</header>
<main>{opening}{render_scores(subjects)}{_promises(subjects)}{_samples(subjects, most)}{_settings(subjects, most)}</main>
<footer>{_part("glossary.html")}<p>Made by llamactl {__version__}; this file needs nothing else.</p></footer>
<script type="application/json" id="data">{embed_json([_data(subject, n, most) for n, subject in enumerate(subjects)])}</script>
<script>{_part("page.js")}</script></body></html>
"""


def _data(subject: RunData, number: int, most: int) -> dict[str, object]:
    """Collect the data of a run that the page's script draws, with at most about `most` points per curve."""
    few = {"train": most, "validation": most // 4, "resumed": most // 20, "spikes": most // 20}
    columns = {name: _thin(getattr(subject, name), few[name]) for name in few}
    whole = len(subject.train["loss"]) == len(columns["train"]["loss"])
    return {
        "name": escape_control_chars(subject.summary.name),
        "colour": COLOURS[number % len(COLOURS)],
        "whole": whole,
        **columns,
    }


def _thin(columns: Columns, most: int) -> dict[str, list[float]]:
    kept = keep_extremes(columns.get("loss", columns["step"]), most)
    return {name: [_short(value) for value in values[kept].tolist()] for name, values in columns.items()}


def _short(value: float) -> float:
    """Round to six significant digits, which is more than a screen shows; integral values become int."""
    return int(value) if value == int(value) and abs(value) < 1e12 else float(f"{value:.6g}")


def _origin(subject: RunData) -> str:
    command = str(subject.environment.get("command", ""))
    about = f"started {subject.summary.started} on {subject.environment.get('device', 'a device that was not noted')}"
    about += f". {subject.summary.warning}" if subject.summary.warning else ""
    return f'<p class="origin"><code>{_cut(command, 600)}</code> <span>{escape_html(about)}</span></p>'


def _results(subjects: Sequence[RunData]) -> str:
    """Render the headline results: tiles for one run; for several a table with the best in bold and differing settings."""
    found = [headline_results(subject) for subject in subjects]
    if len(found) == 1:
        tiles = (f"<div><dt>{name}</dt><dd>{_with_unit(figure.text)}</dd></div>" for name, figure in found[0].items())
        return f'<section><h2>Results</h2><dl class="tiles">{"".join(tiles)}</dl></section>'
    rows = []
    for name in found[0]:
        best = min(result[name].score for result in found)
        cells = ((result[name].text, "best" if result[name].score == best < float("inf") else "") for result in found)
        rows.append(_row(name, cells))
    rows += [f'<tr class="part"><th colspan="{len(found) + 1}">settings that differ</th></tr>']
    rows += [_row(name, ((value, "") for value in values)) for name, values in differing_settings(subjects).items()]
    heads = "".join(
        f'<th scope="col" style="--hue: {COLOURS[number % len(COLOURS)]}"><i></i>{escape_html(subject.summary.name)}</th>'
        for number, subject in enumerate(subjects)
    )
    return f"<section><h2>Results</h2>{_table(f'<th></th>{heads}', rows)}</section>"


def _with_unit(text: str) -> str:
    """Render a result with the part after its number, such as the unit, in a smaller font."""
    number, _, unit = text.partition(" ")
    return f"{escape_html(number)} <small>{escape_html(unit)}</small>"


def _row(name: str, cells: Iterable[tuple[str, str]]) -> str:
    values = "".join(f'<td class="{kind}">{_cut(text, 300)}</td>' for text, kind in cells)
    return f'<tr><th scope="row">{escape_html(name)}</th>{values}</tr>'


def _table(heads: str, rows: Iterable[str]) -> str:
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _chart(subjects: Sequence[RunData]) -> str:
    choices = f"{_buttons('x', 'against', X_BUTTONS, 'tokens')}{_buttons('y', 'in', Y_BUTTONS, 'loss')}"
    return f"""<section id="curves"><h2>Loss</h2><div class="bar">{choices}
<button id="close" aria-pressed="false" title="the height of the smooth curve, without its steep beginning">close up</button>
<button id="whole" hidden>whole run</button></div>
<div id="chart"><svg tabindex="0" role="img" aria-label="Loss curves; arrow keys read values, Escape shows the whole run"></svg>
<div id="tip" role="status" hidden></div></div><div id="legend" class="bar"></div><p class="key" id="key"></p></section>"""


def _buttons(axis: str, word: str, labels: dict[str, str], pressed: str) -> str:
    made = (
        f'<button data-{axis}="{key}" aria-pressed="{str(key == pressed).lower()}">{label}</button>'
        for key, label in labels.items()
    )
    return f'<div class="choice" role="group" aria-label="{word}"><span>{word}</span>{"".join(made)}</div>'


def _promises(subjects: Sequence[RunData]) -> str:
    tables = [table for subject in subjects if (table := _promised(subject, alone=len(subjects) == 1))]
    return f"<section><h2>The plan against what happened</h2>{''.join(tables)}</section>" if tables else ""


def _promised(subject: RunData, alone: bool) -> str:
    summary, found = subject.summary, compare_with_plan(subject)
    if not found:
        return ""
    so_far = "" if summary.condition == "done" else f", so far: step {summary.step:,} of {summary.steps:,}"
    rows = (_row(each.name, ((each.planned, ""), (each.came, ""), (f"×\u00a0{each.ratio:.2f}", "ratio"))) for each in found)
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("", "planned", "happened", "ratio"))
    title = f"<h3>{escape_html(summary.name)}{so_far}</h3>" if so_far or not alone else ""
    return f"{title}{_table(heads, rows)}"


def _samples(subjects: Sequence[RunData], most: int) -> str:
    """Render the samples by step as full lists, of which the script shows one step at a time."""
    prompts = list(dict.fromkeys(prompt for subject in subjects for prompt in subject.samples))[: max(1, most // 100)]
    if not prompts:
        return ""
    strips = "".join(_strip(prompt, subjects, most) for prompt in prompts)
    return f"""<section id="samples"><h2>What it said as it learned</h2><div class="bar slide" hidden>
<button id="play">play</button><input type="range" min="0" value="0" aria-label="step"><output></output>
<button id="all" aria-pressed="false">all at once</button></div>{strips}</section>"""


def _strip(prompt: str, subjects: Sequence[RunData], most: int) -> str:
    said = ""
    for number, subject in enumerate(subjects):
        texts = subject.samples.get(prompt, {})
        moments = "".join(
            f'<li data-step="{step}"><b>{step:,}</b><span>{_cut(_line(texts[step]), most // 4)}</span></li>'
            for step in spread_evenly(sorted(texts), max(2, most // 40))
        )
        name = f"<h4><i></i>{escape_html(subject.summary.name)}</h4>" if len(subjects) > 1 else ""
        said += (
            f'<div class="said" style="--hue: {COLOURS[number % len(COLOURS)]}">{name}<ol>{moments}</ol></div>' if texts else ""
        )
    return f'<article><h3>{_cut(_line(prompt), most // 4)}</h3><div class="runs">{said}</div></article>'


def _line(text: str) -> str:
    """Return a text as one line, with line feeds written as ⏎."""
    return text.strip().replace("\n", " ⏎ ")


def _settings(subjects: Sequence[RunData], most: int) -> str:
    made = ""
    for subject in subjects:
        of = f" of {escape_html(subject.summary.name)}" if len(subjects) > 1 else ""
        environment = json.dumps(subject.environment, indent=2, ensure_ascii=False)
        for title, text in ((f"Settings{of}", dump_toml(subject.config)), (f"What it was made with{of}", environment)):
            made += f"<details><summary>{title}</summary><pre>{_cut(text, 5 * most)}</pre></details>"
    return f"<section><h2>Settings</h2>{made}</section>"


def _cut(text: str, most: int) -> str:
    """Return the escaped text; a text longer than `most` characters is truncated and followed by its length."""
    return escape_html(text) if len(text) <= most else f"{escape_html(text[:most])} <em>… {len(text):,} characters</em>"


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
