"""llamactl eval: how good a model is, and how sure that is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llamactl.cli import completion
from llamactl.cli.settings import SAID, DeviceName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamactl.inference.choices import Score
    from llamactl.inference.evaluate import Evaluation
    from llamactl.inference.harness import Scores
    from llamactl.model.llama import Llama
    from llamactl.tokenizer import Tokenizer

# Headings under which options stand in the help.
TEXT, QUESTIONS, MODEL = "Which text", "Which questions", "The model"

TEXT_HELP = "Text files (.txt, .jsonl, .parquet, also .gz and .zst), folders or globs, instead of a dataset."
TASKS_HELP = "Tasks of lm-evaluation-harness, with commas between, or a task's .yaml: blimp,lambada_openai,sciq,piqa,arc_easy."
POSITIONS = (1, 4, 16, 64, 256, 1024, 4096)  # places in a window whose loss is shown


def evaluate(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help=TEXT_HELP, show_default=False)] = None,
    run: Annotated[
        str,
        typer.Option(
            help="RUN, RUN@STEP, RUN@best or a checkpoint's folder.",
            show_default="the newest",
            autocompletion=completion.checkpoints,
            rich_help_panel=MODEL,
        ),
    ] = "",
    data: Annotated[
        str,
        typer.Option(
            help="Dataset under data/.", show_default="the run's", autocompletion=completion.datasets, rich_help_panel=TEXT
        ),
    ] = "",
    split: Annotated[Literal["val", "train"], typer.Option(help="Which part of the dataset.", rich_help_panel=TEXT)] = "val",
    text_column: Annotated[str, typer.Option(help="Column or key of the text.", rich_help_panel=TEXT)] = "text",
    questions: Annotated[
        list[Path] | None, typer.Option(help="JSONL of questions with choices; repeatable.", rich_help_panel=QUESTIONS)
    ] = None,
    tasks: Annotated[str, typer.Option(help=TASKS_HELP, rich_help_panel=QUESTIONS)] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task.", show_default="all", rich_help_panel=QUESTIONS)
    ] = None,
    device: DeviceName = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.", rich_help_panel=SAID)] = False,
) -> None:
    """Loss, perplexity and bits per byte with standard errors; scores on questions."""
    from dataclasses import asdict

    from llamactl import checkpoint
    from llamactl.cli.screen import show_figures
    from llamactl.errors import BadUsage
    from llamactl.inference.choices import read_questions, score
    from llamactl.inference.harness import run_tasks
    from llamactl.model.device import choose_device

    if texts and data:
        raise BadUsage("Text files and --data exclude each other.", "", "Evaluate them one after the other.")
    asked = {str(path): read_questions(path) for path in questions or []}
    path, where = checkpoint.locate(run), choose_device(device)
    model, tokenizer, state = checkpoint.load_model(path, where)
    record: dict[str, Any] = {"checkpoint": str(path), "step": state.step, "sha256": state.files, "results": {}}
    rows: dict[str, str] = {}
    if texts or data or not (asked or tasks):
        name, digest, found = (
            on_text(model, tokenizer, texts, text_column) if texts else on_dataset(path, model, tokenizer, data, split)
        )
        record["results"][name] = {**asdict(found), "perplexity": found.perplexity, "data": digest}
        rows |= described(name, found)
    for file, lines in asked.items():
        result = score(model, tokenizer, lines)
        record["results"][file] = asdict(result)
        rows[Path(file).name] = answered(result)
    scores = run_tasks(path, tasks.split(","), where, limit) if tasks else None
    record |= {"tasks": scores.record} if scores else {}
    show_figures(f"{path.parents[1].name} at step {state.step:,}", rows, record if json else None)
    if scores and not json:
        show_scores(scores)


def on_dataset(path: Path, model: "Llama", tokenizer: "Tokenizer", data: str, split: str) -> tuple[str, str, "Evaluation"]:
    """The name and digest of a dataset, and what the model makes of a part of it; raises BadData."""
    from llamactl.artifacts import DatasetDir, RunDir
    from llamactl.errors import BadData
    from llamactl.inference.evaluate import evaluate as measured

    run = RunDir(path.absolute().parent.parent)
    folder = DatasetDir.named(data or (run.config().data.name if run.config_path.exists() else ""))
    dataset = folder.open()
    if dataset.info.tokenizer != tokenizer.digest:
        fix = "Evaluate its text instead, which the model's own tokenizer reads: llamactl eval FILES"
        raise BadData(
            f"The dataset {dataset.name} has another tokenizer than the model.", "The same ids stand for other text.", fix
        )
    shards = dataset.val if split == "val" else dataset.train
    return f"{dataset.name}, {split}", dataset.info.digest, measured(model, tokenizer, shards, rests=False)


def on_text(model: "Llama", tokenizer: "Tokenizer", texts: list[str], column: str) -> tuple[str, str, "Evaluation"]:
    """The same of documents in files."""
    import hashlib

    from llamactl.inference.evaluate import evaluate as measured
    from llamactl.inference.evaluate import stream

    ids = stream(tokenizer, read(texts, column))
    name = texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} more"
    return name, hashlib.sha256(ids.tobytes()).hexdigest(), measured(model, tokenizer, (ids,), rests=True)


def read(texts: list[str], column: str) -> "Iterator[str]":
    """The documents of files; raises BadData for one that can't be read."""
    from llamactl.corpus.sources import open_source
    from llamactl.errors import BadData

    source = open_source(texts)
    for piece in range(len(source.pieces)):
        for row in source.documents(piece, column):
            if isinstance(row, BadData):
                raise row
            if row and not row.isspace():
                yield row


def described(name: str, found: "Evaluation") -> dict[str, str]:
    """What was measured, in words."""
    places = [place for place in POSITIONS if place <= len(found.by_position)]
    curve = "  ".join(f"{place:,}: {found.by_position[place - 1]:.2f}" for place in places)
    return {
        "text": f"{name}: {found.documents:,} documents, {found.tokens:,} tokens, {found.bytes:,} bytes",
        "loss": f"{found.loss:.4f} ± {found.loss_error:.4f} nats per token",
        "bits per byte": f"{found.bits_per_byte:.4f} ± {found.bits_per_byte_error:.4f}",
        "perplexity": f"{found.perplexity:.2f}",
        "by position": f"{curve}  (nats per token at that place in a window)",
    }


def answered(result: "Score") -> str:
    """A score in words; one that can't be told from guessing says so."""
    guessing = "" if result.above_chance else "; not to be told from guessing"
    return (
        f"{result.accuracy:.1%} ± {result.accuracy_error:.1%} right, {result.accuracy_per_character:.1%} by likelihood per "
        f"character, {result.questions:,} questions, chance {result.chance:.1%}{guessing}"
    )


def show_scores(scores: "Scores") -> None:
    """A line a task, those greyed that can't be told from guessing."""
    from llamactl.cli.screen import show_columns

    def percent(share: float | None) -> str:
        return "" if share is None else f"{share:.1%}"

    rows = [
        (task.task, task.metric, f"{task.value:.1%} ± {percent(task.error)}", percent(task.chance), percent(task.gpt2))
        for task in scores.tasks
    ]
    guesses = {number for number, task in enumerate(scores.tasks, start=1) if not task.above_chance}
    show_columns(("task", "metric", "score", "chance", "GPT-2 124M"), rows, dim=guesses)
