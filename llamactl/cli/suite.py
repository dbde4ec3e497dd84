"""llamactl eval --suite: ask a model questions that are made from held-out text."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamactl.inference.suite import SuiteText
    from llamactl.model.llama import Llama
    from llamactl.runs.scores import SuiteScores
    from llamactl.tokenizer.bpe import Tokenizer

ABOUT = {
    "minimal pairs": "the sentence, or the same one with a change",
    "order": "  two neighbouring words swapped",
    "word": "  a word replaced by one of its length and frequency",
    "ending": "  a word with another ending",
    "cloze": "the last word of a sentence among five",
    "completion": "a word of which two letters are known, among up to ten",
}


def evaluate_suite(
    path: Path,
    model: "Llama",
    tokenizer: "Tokenizer",
    texts: list[str] | None,
    text_column: str,
    data: str,
    split: str,
    limit: int | None,
) -> "SuiteScores":
    """Score the model of a checkpoint on questions about files, or about a dataset's split; keep the latter in its run.

    Raises DataError for text that can't be read or is too little.
    """
    from llamactl.checkpoint.format import is_foreign, read_state
    from llamactl.inference.suite import ITEMS, run_suite
    from llamactl.runs.scores import SuiteScores

    name, text = read_texts(texts, text_column) if texts else read_split(path, data, split)
    tests, left_out = run_suite(model, tokenizer, text, limit or ITEMS)
    step = 0 if is_foreign(path) else read_state(path).step
    scores = SuiteScores(step=step, data=name, digest=text.seed, tests=tests, left_out=left_out)
    if not texts and split == "val" and limit is None and not is_foreign(path):
        keep_in_run(path, scores)
    return scores


def read_split(path: Path, data: str, split: str) -> tuple[str, "SuiteText"]:
    """Read the text of a split; return its name too. Raises DataError for files that do not match their hashes."""
    from llamactl.cli.eval_text import find_dataset
    from llamactl.corpus.dataset_info import Split
    from llamactl.corpus.verify import verify_in_background
    from llamactl.inference.suite import read_suite_text

    folder = find_dataset(path, data)
    dataset = folder.open()
    part: Split = "val" if split == "val" else "train"
    # A generator of one result: the files are hashed in a thread meanwhile, and damage is raised instead of a result.
    (text,) = verify_in_background((read_suite_text(dataset, split) for _ in range(1)), folder, part)
    return f"{dataset.name}, {split}", text


def read_texts(texts: list[str], column: str) -> tuple[str, "SuiteText"]:
    """Read the documents of files; return their name too. Raises DataError."""
    from llamactl.cli.eval_text import name_texts, read_documents
    from llamactl.inference.suite import make_suite_text

    return name_texts(texts), make_suite_text(read_documents(texts, column))


def keep_in_run(path: Path, scores: "SuiteScores") -> None:
    """Keep the scores in the run of a checkpoint; a folder that can't be written is no reason to lose what was measured."""
    import os

    from llamactl.cli.ui.console import progress
    from llamactl.errors import UserError
    from llamactl.runs.run_dir import run_of
    from llamactl.runs.scores import keep_scores

    run = run_of(path)
    if run is None or not os.path.lexists(run.config_path):
        return
    try:
        keep_scores(run, scores)
    except UserError as error:
        progress.print(f"The scores are not kept for the report: {error.what} {error.why}")


def describe_suite(scores: "SuiteScores") -> dict[str, str]:
    """Describe what was asked about in rows of names and values."""
    asked = sum(test.items for test in scores.tests if test.name != "minimal pairs")
    rows = {"suite": f"{scores.suite}: {asked:,} questions about {scores.data}"}
    if scores.left_out:
        few = ", ".join(f"{name} ({count:,})" for name, count in scores.left_out.items())
        rows["left out"] = f"{few}: too few questions can be made from this text"
    return rows


def show_suite(scores: "SuiteScores") -> None:
    """Print a line for each test, greyed where its score is not significantly above chance."""
    from llamactl.cli.ui.console import show_columns

    rows = [
        (
            test.name,
            f"{test.accuracy:.1%} ± {'?' if test.error is None else f'{test.error:.1%}'}",
            f"{test.chance:.1%}",
            "" if test.bigram is None else f"{test.bigram:.1%}",
            f"{test.items:,}",
            ABOUT.get(test.name, ""),
        )
        for test in scores.tests
    ]
    # From 1, as show_columns counts the header as row 0.
    guesses = {number for number, test in enumerate(scores.tests, start=1) if not test.above_chance}
    show_columns(("test", "score", "chance", "bigrams", "questions", "which is right?"), rows, dim=guesses)
