"""Show the surprisal of a text as one self-contained HTML file: no script, no font, no network."""

import html
import math
from collections.abc import Sequence

from llamactl.escape import escape_control_chars
from llamactl.inference.surprisal import Piece, bits_per_byte

MOST = 10.0  # bits of surprisal with the strongest colour

STYLE = """
:root { color-scheme: light dark; --paper: #fdfcfa; --ink: #1c1b19; --quiet: #77736c; --card: #ffffff; --edge: #d9d5cd }
@media (prefers-color-scheme: dark) {
  :root { --paper: #191816; --ink: #eceae5; --quiet: #9b968d; --card: #262522; --edge: #45423d }
}
body { background: var(--paper); color: var(--ink); font: 17px/1.9 Georgia, serif; max-width: 46rem; margin: 3rem auto;
  padding: 0 1.5rem 12rem }
h1 { font-size: 1.25rem; margin: 0 } .facts { color: var(--quiet); font: 14px/1.5 system-ui, sans-serif; margin: .3rem 0 2rem }
.text { white-space: pre-wrap; overflow-wrap: anywhere }
.text span { border-radius: 3px; padding: 1px 0; position: relative; cursor: default }
.text span:hover { outline: 1.5px solid var(--ink) }
.text span:hover::after { content: attr(data-tip); position: absolute; left: 0; top: 1.9em; z-index: 1; white-space: pre;
  background: var(--card); color: var(--ink); border: 1px solid var(--edge); border-radius: 6px; padding: .5rem .8rem;
  font: 13px/1.55 ui-monospace, monospace; box-shadow: 0 4px 18px #0003; pointer-events: none }
.scale { display: flex; align-items: center; gap: .6rem; font: 13px system-ui, sans-serif; color: var(--quiet) }
.scale i { height: .7rem; flex: 0 0 11rem; border-radius: 3px }
"""


def render_page(title: str, pieces: Sequence[Piece], before: Sequence[Piece] = ()) -> str:
    """Render a text coloured by surprisal.

    With `before`, the pieces of the same text under another checkpoint, the colour shows the change since that checkpoint.
    """
    others: Sequence[Piece | None] = before or [None] * len(pieces)
    spans = "".join(map(_span, pieces, others))
    legend = _scale("learned since: less surprised", "rgb(0 114 178 / .55)", "rgb(213 94 0 / .55)", "more surprised")
    if not before:
        legend = _scale("expected", "transparent", "rgb(213 94 0 / .75)", f"{MOST:.0f} bits or more")
    facts = f"{bits_per_byte(list(pieces)):.3f} bits per byte over {len(pieces):,} pieces"
    if before:
        facts += f"; it was {bits_per_byte(list(before)):.3f}"
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_safe(title)}</title><style>{STYLE}</style>
<h1>{_safe(title)}</h1>
<p class="facts">{facts}. Point at a word to see what was expected.</p>
{legend}
<p class="text">{spans}</p>
</html>
"""


def _scale(low: str, first: str, last: str, high: str) -> str:
    gradient = f"linear-gradient(90deg, {first}, transparent, {last})" if first != "transparent" else ""
    gradient = gradient or f"linear-gradient(90deg, transparent, {last})"
    return f'<p class="scale">{low}<i style="background:{gradient}"></i>{high}</p>'


def _span(piece: Piece, before: Piece | None) -> str:
    return (
        f'<span style="background:{_colour(piece, before)}" data-tip="{_safe(_tip(piece, before))}">{_safe(piece.text)}</span>'
    )


def _colour(piece: Piece, before: Piece | None) -> str:
    """Return orange for surprisal; compared with another checkpoint, orange where it grew and blue where it fell."""
    if before is None:
        return f"rgb(213 94 0 / {0.75 * min(1.0, piece.bits / MOST):.2f})"
    change = max(-1.0, min(1.0, (piece.bits - before.bits) / MOST))
    return f"rgb({'213 94 0' if change > 0 else '0 114 178'} / {0.55 * abs(change):.2f})"


def _tip(piece: Piece, before: Piece | None) -> str:
    lines = [f"{piece.bits:.1f} bits, a chance of {_share(math.exp(-piece.nats))}"]
    lines += [f"it was {before.bits:.1f} bits"] if before else []
    return "\n".join([*lines, "", *(f"{_share(chance):>7}  {text!r}" for text, chance in piece.expected)])


def _share(chance: float) -> str:
    return f"{chance:.1%}" if chance >= 0.001 else f"1 in {1 / max(chance, 1e-12):,.0f}"


def _safe(text: str) -> str:
    """Escape text so that it cannot end its HTML element or reverse the direction of the text after it."""
    return html.escape(escape_control_chars(text), quote=True)
