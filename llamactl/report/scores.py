"""Render the scores of the evaluation suite: a bar for each test and run, with its error, chance and a simpler model."""

from collections.abc import Sequence

from llamactl.escape import escape_html
from llamactl.report.plots import COLOURS
from llamactl.report.run_data import RunData
from llamactl.runs.scores import ScoredTest, SuiteScores

ABOUT = {
    "minimal pairs": "a held-out sentence is likelier than the same one with a change",
    "order": "two neighbouring words are swapped",
    "word": "a word is replaced by one of its length and frequency",
    "ending": "a word has another ending",
    "cloze": "the last word of a sentence is the likeliest of five",
    "completion": "a word is the likeliest of those with its first two letters",
}
PARTS = ("order", "word", "ending")  # of the minimal pairs
MOST_EARLIER = 8  # steps before the last one that are marked


def render_scores(subjects: Sequence[RunData]) -> str:
    """Render a section with the newest scores of each run that has any; empty where no run has."""
    shown = [(number, subject) for number, subject in enumerate(subjects) if subject.scores]
    if not shown:
        return ""
    names = list(dict.fromkeys(test.name for _, subject in shown for test in subject.scores[-1].tests))
    alone = len(subjects) == 1
    groups = "".join(_group(name, shown, alone) for name in names)
    texts = dict.fromkeys(subject.scores[-1].data for _, subject in shown)
    step = f"Step {shown[0][1].scores[-1].step:,}. " if alone else ""
    courses = any(len(subject.scores) > 1 for _, subject in shown)
    earlier = ' <span><b class="sign earlier"></b>earlier checkpoints</span>' if courses else ""
    key = f"""<p class="key">{step}Questions made from {escape_html(" and ".join(texts))}; a bar is the share of right answers,
with its standard error. <span><b class="sign chance"></b>guessing</span> <span><b class="sign bigram"></b>counts of
neighbouring words</span>{earlier}</p>"""
    kind = "scores alone" if alone else "scores"
    return f'<section id="scores"><h2>Scores</h2><div class="{kind}">{groups}</div>{key}</section>'


def _group(name: str, shown: Sequence[tuple[int, RunData]], alone: bool) -> str:
    """Render a test: its name, and a row for each run."""
    part = ' class="part"' if name in PARTS else ""
    rows = ""
    for number, subject in shown:
        scores = subject.scores[-1]
        test = _find(scores, name)
        if test is None:
            continue
        # Scores on another text are no points of the same course.
        earlier = [each for each in subject.scores[:-1] if each.digest == scores.digest][-MOST_EARLIER:]
        hue = f'style="--hue: {COLOURS[number % len(COLOURS)]}"'
        error = "" if test.error is None else f" ± {test.error:.1%}"
        label = "" if alone else f"<h4 {hue}><i></i>{escape_html(subject.summary.name)}</h4>"
        rows += f"{label}{_track(test, name, earlier, hue)}<span>{test.accuracy:.1%}{error}</span>"
    return f"<h3{part}>{escape_html(name)} <small>{escape_html(ABOUT.get(name, ''))}</small></h3>{rows}"


def _track(test: ScoredTest, name: str, earlier: Sequence[SuiteScores], hue: str) -> str:
    """Render the bar of a score on a scale from 0 to 100 %."""
    marks = f'<b class="fill" style="width: {test.accuracy:.2%}"></b>'
    for before in earlier:
        if found := _find(before, name):
            marks += (
                f'<b class="earlier" style="left: {found.accuracy:.2%}" title="step {before.step:,}: {found.accuracy:.1%}"></b>'
            )
    marks += f'<b class="chance" style="left: {test.chance:.2%}" title="guessing: {test.chance:.1%}"></b>'
    if test.bigram is not None:
        marks += f'<b class="bigram" style="left: {test.bigram:.2%}" title="neighbouring words: {test.bigram:.1%}"></b>'
    if test.error is not None:
        low, high = max(0.0, test.accuracy - test.error), min(1.0, test.accuracy + test.error)
        marks += f'<b class="error" style="left: {low:.2%}; width: {high - low:.2%}"></b>'
    return f'<div class="track" {hue}>{marks}</div>'


def _find(scores: SuiteScores, name: str) -> ScoredTest | None:
    return next((test for test in scores.tests if test.name == name), None)
