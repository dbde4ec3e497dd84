"""llamactl eval: measure loss, bits per byte and scores on questions, with standard errors."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llamactl.cli import completion
from llamactl.cli.options import MODEL_HELP, SAID, DeviceName
from llamactl.cli.preconditions import import_torch_and_verify, require_run
from llamactl.cli.suite import show_suite

if TYPE_CHECKING:
    from llamactl.inference.evaluate import Evaluation
    from llamactl.inference.lm_eval_harness import Scores
    from llamactl.inference.multiple_choice import Score
    from llamactl.model.llama import Llama
    from llamactl.runs.scores import SuiteScores
    from llamactl.tokenizer.bpe import Tokenizer

# Headings of the groups of options in --help.
TEXT, QUESTIONS, MODEL = "Text", "Questions", "Model"

TEXT_HELP = "Files of any kind that prepare reads, folders or globs, - for stdin, instead of a dataset."
TASKS_HELP = "Tasks of lm-evaluation-harness, separated by commas, or a task's .yaml: blimp,lambada_openai,sciq,piqa,arc_easy."
POSITIONS = (1, 4, 16, 64, 256, 1024, 4096)  # in the context, whose loss is shown


def evaluate(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help=TEXT_HELP, show_default=False)] = None,
    run: Annotated[
        str,
        typer.Option(
            help=MODEL_HELP,
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
    split: Annotated[Literal["val", "train"], typer.Option(help="Split of the dataset.", rich_help_panel=TEXT)] = "val",
    text_column: Annotated[str, typer.Option(help="Column or key of the text in files.", rich_help_panel=TEXT)] = "text",
    questions: Annotated[
        list[Path] | None, typer.Option(help="JSONL file of multiple-choice questions; repeatable.", rich_help_panel=QUESTIONS)
    ] = None,
    suite: Annotated[
        Literal["small"] | None,
        typer.Option(help="Questions made from the text: minimal pairs, cloze, completion.", rich_help_panel=QUESTIONS),
    ] = None,
    tasks: Annotated[str, typer.Option(help=TASKS_HELP, rich_help_panel=QUESTIONS)] = "",
    limit: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Questions per task or test.", show_default="all, 200", rich_help_panel=QUESTIONS),
    ] = None,
    device: DeviceName = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.", rich_help_panel=SAID)] = False,
) -> None:
    """Measure loss, perplexity and bits per byte with standard errors, and scores on questions."""
    from dataclasses import asdict

    require_run(run)
    verified = import_torch_and_verify(run)
    from llamactl.checkpoint import io as checkpoint_io
    from llamactl.checkpoint import select as checkpoint_select
    from llamactl.cli.suite import describe_suite, evaluate_suite
    from llamactl.cli.ui.console import show_figures
    from llamactl.hardware.device import choose_device
    from llamactl.inference.lm_eval_harness import run_tasks
    from llamactl.inference.multiple_choice import read_questions, score_questions

    check_options(texts or [], data, split, text_column, tasks or suite or "", limit)
    # Read before the model is loaded, so that a mistake in a file is reported at once.
    question_files = {str(path): read_questions(path) for path in questions or []}
    target = choose_device(device)
    path, model, tokenizer, state = checkpoint_io.open_model(run, target, verified)
    record: dict[str, Any] = {"checkpoint": str(path), "step": state.step, "sha256": state.files, "results": {}}
    rows: dict[str, str] = {}
    scored = evaluate_suite(path, model, tokenizer, texts, text_column, data, split, limit) if suite else None
    # Without any source the dataset of the run is evaluated, unless questions or tasks were asked for.
    if not scored and (texts or data or not (question_files or tasks)):
        measured = evaluate_text(model, tokenizer, texts, text_column) if texts else None
        name, digest, result = measured or evaluate_dataset(path, model, tokenizer, data, split)
        record["results"][name] = {**asdict(result), "perplexity": result.perplexity, "data": digest}
        rows |= describe_evaluation(name, result)
    names = [Path(file).name for file in question_files]
    for (file, lines), name in zip(question_files.items(), names, strict=True):
        score = score_questions(model, tokenizer, lines)
        record["results"][file] = asdict(score)
        # A long path leaves no room for the figures: it is for files of one name.
        rows[name if names.count(name) == 1 else file] = describe_score(score)
    scores = run_tasks(path, tokenizer, tasks.split(","), target, limit) if tasks else None
    record |= {"tasks": scores.record} if scores else {}
    record |= {"suite": scored.model_dump(mode="json")} if scored else {}
    rows |= describe_suite(scored) if scored else {}
    show_figures(checkpoint_select.describe_model(path, state), rows, record if json else None)
    if not json:
        show_tables(scored, scores)


def check_options(texts: list[str], data: str, split: str, text_column: str, tested: str, limit: int | None) -> None:
    """Raise UsageError for options that exclude each other, or would have no effect."""
    from llamactl.errors import UsageError

    if texts and data:
        raise UsageError("Text files and --data exclude each other.", "", "Evaluate them one after the other.")
    if texts and split != "val":
        raise UsageError(
            "--split needs a dataset; text files have no splits.", "", "Leave it out, or name a dataset: --data NAME"
        )
    if text_column != "text" and not texts:
        raise UsageError("--text-column needs text files.", "", "Example: llamactl eval my.jsonl --text-column body")
    if limit is not None and not tested:
        raise UsageError("--limit needs --tasks or --suite.", "", "Example: llamactl eval --tasks sciq --limit 100")


def evaluate_dataset(
    path: Path, model: "Llama", tokenizer: "Tokenizer", data: str, split: str
) -> tuple[str, str, "Evaluation"]:
    """Evaluate a split of a dataset; return its name, its digest and the result. Raises DataError."""
    from llamactl.cli.eval_text import find_dataset
    from llamactl.corpus.dataset_info import Split
    from llamactl.corpus.targets import settings_for, window_rule
    from llamactl.corpus.verify import verify_in_background
    from llamactl.errors import DataError
    from llamactl.inference.evaluate import evaluate_streams
    from llamactl.runs.run_dir import data_settings

    settings, folder = data_settings(path), find_dataset(path, data)
    dataset = folder.open()
    if not tokenizer.extends(dataset.tokenizer):
        fix = "Evaluate its text instead, with the model's tokenizer: llamactl eval FILES"
        raise DataError(
            f"The dataset {dataset.name} has another tokenizer than the model.", "The same ids mean other text.", fix
        )
    part: Split = "val" if split == "val" else "train"
    shards = dataset.val if part == "val" else dataset.train
    # A generator of one result: the files are hashed in a thread meanwhile, and damage is raised instead of a result.
    rule = window_rule(dataset, settings_for(dataset, settings), model.config.context)
    evaluated = (evaluate_streams(model, tokenizer, shards, False, dataset.byte_lengths, rule) for _ in range(1))
    (result,) = verify_in_background(evaluated, folder, part)
    return f"{dataset.name}, {split}", dataset.info.digest, result


def evaluate_text(model: "Llama", tokenizer: "Tokenizer", texts: list[str], column: str) -> tuple[str, str, "Evaluation"]:
    """Evaluate documents in files; return their name, the digest of their tokens and the result. Raises DataError."""
    import hashlib

    from llamactl.cli.eval_text import name_texts, read_documents
    from llamactl.errors import DataError
    from llamactl.inference.evaluate import evaluate_streams, token_stream

    ids = token_stream(tokenizer, read_documents(texts, column))
    # A stream begins with the end-of-text token: alone it has nothing to predict.
    if len(ids) == 1:
        raise DataError(f"There is nothing to measure in {', '.join(texts)}.", "It is empty or has only spaces.")
    return name_texts(texts), hashlib.sha256(ids.tobytes()).hexdigest(), evaluate_streams(model, tokenizer, (ids,), rests=True)


def describe_evaluation(name: str, result: "Evaluation") -> dict[str, str]:
    """Describe an evaluation in rows of names and values."""
    positions = [position for position in POSITIONS if position <= len(result.by_position)]
    curve = "  ".join(f"{position:,}: {result.by_position[position - 1]:.2f}" for position in positions)
    return {
        "text": f"{name}: {result.documents:,} documents, {result.tokens:,} tokens, {result.bytes:,} bytes",
        "loss": f"{result.loss:.4f} ± {_error(result.loss_error)} nats per token",
        "bits per byte": f"{result.bits_per_byte:.4f} ± {_error(result.bits_per_byte_error)}",
        "perplexity": f"{result.perplexity:.2f}",
        "by position": f"{curve}  (nats per token at that position in the context)",
    }


def _error(value: float) -> str:
    """Format a standard error, or ? for that of a single document, which is not finite."""
    return f"{value:.4f}" if math.isfinite(value) else "?"


def describe_score(score: "Score") -> str:
    """Describe a score, with a note where it is not significantly above chance."""
    guessing = "" if score.above_chance else "; not significantly above chance"
    return (
        f"{score.accuracy:.1%} ± {score.accuracy_error:.1%} correct, {score.accuracy_per_character:.1%} by likelihood per "
        f"character, {score.questions:,} questions, chance {score.chance:.1%}{guessing}"
    )


def show_tables(suite: "SuiteScores | None", tasks: "Scores | None") -> None:
    """Print the table of the suite and that of the tasks, where there are any."""
    if suite:
        show_suite(suite)
    if tasks:
        show_scores(tasks)


def show_scores(scores: "Scores") -> None:
    """Print a line for each task, greyed where its score is not significantly above chance."""
    from llamactl.cli.ui.console import show_columns

    def percent(share: float | None) -> str:
        return "" if share is None else f"{share:.1%}"

    rows = [
        (task.task, task.metric, f"{task.value:.1%} ± {percent(task.error)}", percent(task.chance), percent(task.gpt2))
        for task in scores.tasks
    ]
    # From 1, as show_columns counts the header as row 0.
    guesses = {number for number, task in enumerate(scores.tasks, start=1) if not task.above_chance}
    show_columns(("task", "metric", "score", "chance", "GPT-2 124M"), rows, dim=guesses)
