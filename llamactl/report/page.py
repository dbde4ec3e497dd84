"""A report as one HTML file: no network, no font, no library, and nothing that was read from disk is taken for markup."""

import html
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files

from llamactl import __version__
from llamactl.config import dump
from llamactl.plots import COLOURS
from llamactl.report.figures import differences, promises, results
from llamactl.report.subject import Columns, Subject, extremes, spread
from llamactl.spelling import safe

LARGEST = 2_000_000  # bytes of a page
FINEST, COARSEST = 4_000, 50  # points of a curve

# The browser is told to fetch nothing, whatever the page says.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

X_BUTTONS = {"step": "steps", "tokens": "tokens", "seconds": "time", "flops": "FLOPs"}
Y_BUTTONS = {"loss": "nats per token", "bits_per_byte": "bits per byte"}


def page(subjects: Sequence[Subject]) -> str:
    """The report of some runs, as fine as fits into 2 MB: curves and film strips are thinned, and keep their extremes."""
    most = FINEST
    while len((made := _page(subjects, most)).encode()) >= LARGEST and most > COARSEST:
        most //= 2
    return made


def _page(subjects: Sequence[Subject], most: int) -> str:
    title = ", ".join(subject.summary.name for subject in subjects)
    first = (_results(subjects), _chart(subjects))
    opening = "".join(first if len(subjects) == 1 else reversed(first))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{_safe(title)} – llamactl</title><style>{_part("page.css")}</style></head>
<body><header><h1>{_safe(title)}</h1>{"".join(map(_origin, subjects))}</header>
<main>{opening}{_promises(subjects)}{_samples(subjects, most)}{_settings(subjects, most)}</main>
<footer>{_part("glossary.html")}<p>Made by llamactl {__version__}; this file needs nothing else.</p></footer>
<script type="application/json" id="data">{embedded([_data(subject, n, most) for n, subject in enumerate(subjects)])}</script>
<script>{_part("page.js")}</script></body></html>
"""


def embedded(value: object) -> str:
    """JSON that can stand in a script element: nothing in it can end that element or a line."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return "".join(f"\\u{ord(letter):04x}" if letter in "<>&\u2028\u2029" else letter for letter in text)


def _data(subject: Subject, number: int, most: int) -> dict[str, object]:
    """What the script draws of a run; one that is alone has its validation in a colour of its own."""
    few = {"train": most, "validation": most // 4, "resumed": most // 20, "spikes": most // 20}
    columns = {name: _thin(getattr(subject, name), few[name]) for name in few}
    whole = len(subject.train["loss"]) == len(columns["train"]["loss"])
    return {"name": safe(subject.summary.name), "colour": COLOURS[number % len(COLOURS)], "whole": whole, **columns}


def _thin(columns: Columns, most: int) -> Columns:
    kept = extremes(columns.get("loss", columns["step"]), most)
    return {name: [_short(values[place]) for place in kept] for name, values in columns.items()}


def _short(value: float) -> float:
    """Six digits are more than a screen shows."""
    return int(value) if value == int(value) and abs(value) < 1e12 else float(f"{value:.6g}")


def _origin(subject: Subject) -> str:
    command = str(subject.environment.get("command", ""))
    about = f"started {subject.summary.started} on {subject.environment.get('device', 'a device that was not noted')}"
    return f'<p class="origin"><code>{_cut(command, 600)}</code> <span>{_safe(about)}</span></p>'


def _results(subjects: Sequence[Subject]) -> str:
    """The headline figures: tiles for one run; columns for several, the best in bold, and below them how they differ."""
    found = [results(subject) for subject in subjects]
    if len(found) == 1:
        tiles = (f"<div><dt>{name}</dt><dd>{_with_unit(figure.text)}</dd></div>" for name, figure in found[0].items())
        return f'<section><h2>Results</h2><dl class="tiles">{"".join(tiles)}</dl></section>'
    rows = []
    for name in found[0]:
        best = min(result[name].score for result in found)
        cells = ((result[name].text, "best" if result[name].score == best < float("inf") else "") for result in found)
        rows.append(_row(name, cells))
    rows += [f'<tr class="part"><th colspan="{len(found) + 1}">settings that differ</th></tr>']
    rows += [_row(name, ((value, "") for value in values)) for name, values in differences(subjects).items()]
    heads = "".join(
        f'<th scope="col" style="--hue: {COLOURS[number % len(COLOURS)]}"><i></i>{_safe(subject.summary.name)}</th>'
        for number, subject in enumerate(subjects)
    )
    return f"<section><h2>Results</h2>{_table(f'<th></th>{heads}', rows)}</section>"


def _with_unit(text: str) -> str:
    """The number of a figure, and the rest of it smaller."""
    number, _, unit = text.partition(" ")
    return f"{_safe(number)} <small>{_safe(unit)}</small>"


def _row(name: str, cells: Iterable[tuple[str, str]]) -> str:
    values = "".join(f'<td class="{kind}">{_cut(text, 300)}</td>' for text, kind in cells)
    return f'<tr><th scope="row">{_safe(name)}</th>{values}</tr>'


def _table(heads: str, rows: Iterable[str]) -> str:
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _chart(subjects: Sequence[Subject]) -> str:
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


def _promises(subjects: Sequence[Subject]) -> str:
    tables = [table for subject in subjects if (table := _promised(subject, alone=len(subjects) == 1))]
    return f"<section><h2>The plan against what happened</h2>{''.join(tables)}</section>" if tables else ""


def _promised(subject: Subject, alone: bool) -> str:
    summary, found = subject.summary, promises(subject)
    if not found:
        return ""
    so_far = "" if summary.condition == "done" else f", so far: step {summary.step:,} of {summary.steps:,}"
    rows = (_row(each.name, ((each.planned, ""), (each.came, ""), (f"×\u00a0{each.ratio:.2f}", "ratio"))) for each in found)
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("", "planned", "happened", "ratio"))
    title = f"<h3>{_safe(summary.name)}{so_far}</h3>" if so_far or not alone else ""
    return f"{title}{_table(heads, rows)}"


def _samples(subjects: Sequence[Subject], most: int) -> str:
    """The film strip: whole lists, of which the script shows one moment at a time."""
    prompts = list(dict.fromkeys(prompt for subject in subjects for prompt in subject.samples))[: max(1, most // 100)]
    if not prompts:
        return ""
    strips = "".join(_strip(prompt, subjects, most) for prompt in prompts)
    return f"""<section id="samples"><h2>What it said as it learned</h2><div class="bar slide" hidden>
<button id="play">play</button><input type="range" min="0" value="0" aria-label="step"><output></output>
<button id="all" aria-pressed="false">all at once</button></div>{strips}</section>"""


def _strip(prompt: str, subjects: Sequence[Subject], most: int) -> str:
    said = ""
    for number, subject in enumerate(subjects):
        texts = subject.samples.get(prompt, {})
        moments = "".join(
            f'<li data-step="{step}"><b>{step:,}</b><span>{_cut(_line(texts[step]), most // 4)}</span></li>'
            for step in spread(sorted(texts), max(2, most // 40))
        )
        name = f"<h4><i></i>{_safe(subject.summary.name)}</h4>" if len(subjects) > 1 else ""
        said += (
            f'<div class="said" style="--hue: {COLOURS[number % len(COLOURS)]}">{name}<ol>{moments}</ol></div>' if texts else ""
        )
    return f'<article><h3>{_cut(_line(prompt), most // 4)}</h3><div class="runs">{said}</div></article>'


def _line(text: str) -> str:
    """A text in one line, however many it has."""
    return text.strip().replace("\n", " ⏎ ")


def _settings(subjects: Sequence[Subject], most: int) -> str:
    made = ""
    for subject in subjects:
        of = f" of {_safe(subject.summary.name)}" if len(subjects) > 1 else ""
        environment = json.dumps(subject.environment, indent=2, ensure_ascii=False)
        for title, text in ((f"Settings{of}", dump(subject.config)), (f"What it was made with{of}", environment)):
            made += f"<details><summary>{title}</summary><pre>{_cut(text, 5 * most)}</pre></details>"
    return f"<section><h2>Settings</h2>{made}</section>"


def _cut(text: str, most: int) -> str:
    """The text, or its beginning and how much there is of it."""
    return _safe(text) if len(text) <= most else f"{_safe(text[:most])} <em>… {len(text):,} characters</em>"


def _safe(text: str) -> str:
    """Text that can't end its element, nor steer what shows it."""
    return html.escape(safe(text), quote=True)


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
