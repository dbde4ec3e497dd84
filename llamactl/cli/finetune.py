"""llamactl finetune: train a model to answer, on conversations."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamactl.cli import completion
from llamactl.cli.bounds import check_finite
from llamactl.cli.options import (
    MACHINE,
    RUN,
    SAID,
    START,
    DeviceName,
    ParallelWay,
    PrecisionName,
    Settings,
    typed_settings,
)
from llamactl.cli.preconditions import import_torch, require_run
from llamactl.cli.run_training import TrainingRequest, run_training
from llamactl.cli.train import BITS_HELP, YES_HELP, yield_to_others
from llamactl.errors import UsageError

if TYPE_CHECKING:
    from llamactl.corpus.chat_dataset import Mix
    from llamactl.corpus.dataset import Dataset
    from llamactl.corpus.dataset_info import Recipe
    from llamactl.corpus.rows import RowSource
    from llamactl.training.finetune import BaseModel

DATA = "Conversations"

CONVERSATIONS_HELP = "Files, folders or globs of .jsonl, .json (also packed) or .parquet, or hf:ORG/NAME[:CONFIG]."
FROM_HELP = "The model to start from: RUN, RUN@STEP, RUN@best, a folder, or hf:ORG/NAME."
NAME_HELP = "Name of the run; the same command resumes it."
MIX_HELP = "Share of the rows that are text MODEL was trained on, so that it forgets less."
MIX_FROM_HELP = "Take that text from this dataset under data/."
VAL_HELP = "Share of the conversations for validation; 0: by their size."
CONTEXT_HELP = "Tokens of a row, and of the model's context."


def finetune(
    conversations: Annotated[list[str], typer.Argument(metavar="CONVERSATIONS...", help=CONVERSATIONS_HELP)],
    model: Annotated[
        str,
        typer.Option("--from", metavar="MODEL", help=FROM_HELP, rich_help_panel=START, autocompletion=completion.checkpoints),
    ],
    run: Annotated[
        str,
        typer.Option("--run", "--name", help=NAME_HELP, show_default="CONVERSATIONS-MODEL", rich_help_panel=RUN),
    ] = "",
    data: Annotated[
        str, typer.Option(help="Folder under data/ for the rows.", show_default="as the run", rich_help_panel=DATA)
    ] = "",
    epochs: Annotated[
        float, typer.Option(min=0.01, callback=check_finite, help="How often to read the rows.", rich_help_panel=RUN)
    ] = 3.0,
    tokens: Annotated[
        str, typer.Option(help="Instead of --epochs: 256000, 256k.", show_default=False, rich_help_panel=RUN)
    ] = "",
    time: Annotated[str, typer.Option(help="Instead of --epochs: 10m, 2h.", show_default=False, rich_help_panel=RUN)] = "",
    mix: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9,
            callback=check_finite,
            help=MIX_HELP,
            show_default="0.5 where there is such text",
            rich_help_panel=DATA,
        ),
    ] = None,
    mix_from: Annotated[
        str,
        typer.Option(
            metavar="DATASET",
            help=MIX_FROM_HELP,
            show_default="that of MODEL's run",
            rich_help_panel=DATA,
            autocompletion=completion.datasets,
        ),
    ] = "",
    context: Annotated[
        int | None, typer.Option(min=8, help=CONTEXT_HELP, show_default="MODEL's, up to 4096", rich_help_panel=START)
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(min=0, max=0.5, callback=check_finite, help=VAL_HELP, rich_help_panel=DATA)
    ] = 0.0,
    settings: Settings = None,
    device: DeviceName = "",
    precision: PrecisionName = "",
    parallel: ParallelWay = "",
    deterministic: Annotated[bool, typer.Option("--deterministic", help=BITS_HELP, rich_help_panel=MACHINE)] = False,
    yes: Annotated[bool, typer.Option("--yes", help=YES_HELP, rich_help_panel=RUN)] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Prepare the rows, print the plan and exit.", rich_help_panel=SAID)
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print each event as a line of JSON on stdout.", rich_help_panel=SAID)
    ] = False,
) -> None:
    """Fine-tune a model on conversations, so that it answers."""
    from llamactl.config.schema import build_config
    from llamactl.corpus.rows import open_rows
    from llamactl.distributed.launch import read_launch
    from llamactl.units import read_time

    if tokens and time:
        raise UsageError("--time and --tokens exclude each other.", "Both are the budget.", "Leave one of them out.")
    require_run(model)
    source = open_rows(conversations)
    name = run or source.name_with(model)
    seconds, budget = read_time(time) if time else 0.0, 0.0 if tokens or time else epochs
    typed = typed_settings(tokens, device, precision, "", settings or [])
    typed += [{"train": {key: value}} for key, value in (("parallel", parallel), ("deterministic", deterministic)) if value]
    build_config(typed)  # a mistake is told before rows are made

    def choose() -> TrainingRequest:
        from llamactl.escape import path_to_text
        from llamactl.training.finetune import finetuning_settings, row_recipe

        base = read_model(model, context)
        text = choose_text(base, mix, mix_from)
        recipe = row_recipe(path_to_text(" ".join(conversations)), source, base, text, val_fraction)
        rows = make_rows(source, recipe, base, text, data or name)
        chosen = [*finetuning_settings(base, rows, budget), *typed]
        request = start_or_resume(name, base, rows, chosen, dry_run)
        # A resumed run keeps the budget that the time bought.
        return request if request.again else request._replace(seconds=seconds)

    if read_launch().size == 1:
        yield_to_others(name)
        import_torch()
        run_training(choose(), dry_run, json, [], yes)
        return
    from llamactl.distributed.context import broadcast_from_rank0, process_group

    # Rank 0 makes the rows for all.
    with process_group():
        run_training(broadcast_from_rank0(choose), dry_run, json, [], yes)


def read_model(model: str, context: int | None) -> "BaseModel":
    """Read what fine-tuning needs to know of MODEL; raises DataError, NoNetwork."""
    from llamactl.checkpoint.select import retry_while_pruned
    from llamactl.cli.ui.preparation import show_notes
    from llamactl.training.finetune import read_base_model

    base = retry_while_pruned(model, lambda path: read_base_model(path, context))
    if base.other_template:
        show_notes(["the model has a chat template of its own: that of llamactl, with tokens for the roles, replaces it"])
    return base


def choose_text(base: "BaseModel", mix: float | None, mix_from: str) -> "Mix | None":
    """Find the text to mix in, and say so where there is none of the model's; raises DataError, UsageError."""
    from llamactl.cli.ui.preparation import show_notes
    from llamactl.training.finetune import find_text

    text = find_text(base, mix, mix_from)
    if text is None and mix is None:
        show_notes(
            ["no text is mixed in, as none of the model's is here: what it has read may be forgotten (--mix-from DATASET)"]
        )
    return text


def make_rows(source: "RowSource", recipe: "Recipe", base: "BaseModel", text: "Mix | None", name: str) -> "Dataset":
    """Make the dataset of rows for a model, unless it is complete, and open it; raises DataError."""
    from llamactl.cli.ui.conversations import show_packing
    from llamactl.corpus.chat_dataset import prepare_conversations
    from llamactl.corpus.dataset import DatasetDir

    folder = DatasetDir.from_name(name)
    show_packing(prepare_conversations(source, recipe, base.tokenizer, text, folder), folder)
    return folder.open()


def start_or_resume(
    name: str, base: "BaseModel", rows: "Dataset", settings: list[dict[str, Any]], dry_run: bool
) -> TrainingRequest:
    """Build the request to fine-tune a model on rows, or to resume the run that does so; raises UsageError for another run."""
    from llamactl.runs.run_dir import RunDir
    from llamactl.training.finetune import check_same_run
    from llamactl.training.init_from import config_from_checkpoint
    from llamactl.training.resumption import config_of_resumed_run

    folder = RunDir.from_name(name)
    if folder.config_path.exists() and not dry_run:
        check_same_run(folder, base, rows)
        return TrainingRequest(config_of_resumed_run(folder, settings), folder, True)
    return TrainingRequest(config_from_checkpoint(base.name, settings), folder, False)
