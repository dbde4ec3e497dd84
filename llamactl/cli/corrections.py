"""Suggest the right option or command for an unknown one, by similar spelling or by its name in other tools."""

import difflib
import shlex
import sys
from typing import Any

from llamactl.config.other_names import normalize_name, translate_name
from llamactl.config.schema import find_by_key

# Option -> its names in other tools; used only for commands that have the option. Compared without case and hyphens.
OPTIONS = {
    "--max-new-tokens": "max_tokens num_tokens tokens length max_length max_new_token new_tokens n_predict",
    "--n": "num_samples n_samples samples num_return_sequences count",
    "--temperature": "temp",
    "--repetition-penalty": "repeat_penalty",
    "--run": "checkpoint ckpt checkpoint_dir ckpt_path checkpoint_path model model_path model_name model_tag load weights_path "
    "out_dir output output_dir out save_dir save_to run_name",
    "--data": "dataset dataset_name data_dir data_path input train_data",
    "--name": "out output output_dir out_dir dataset dataset_name dest destination",
    "--out": "output output_file output_path save file",
    "--tokenizer": "vocab_size vocab tokenizer_name encoding_name tokenizer_path",
    "--text-column": "text_key text_field column field json_key content_key",
    "--val-fraction": "val val_split val_ratio validation_split test_size val_size valid_fraction holdout",
    "--workers": "num_proc num_workers n_jobs jobs threads nproc",
    "--max-tokens": "limit num_tokens tokens",
    "--preset": "model_size size model config_name model_name",
    "--tokens": "budget epochs epoch num_epochs n_epochs max_epochs num_train_epochs steps max_steps num_steps total_steps "
    "iters max_iters num_iterations iterations",
    "--resume": "resume_from resume_from_checkpoint load_checkpoint continue restore",
    "--card": "gpu device_name gpu_name",
    "--device": "gpu cuda cpu accelerator device_type",
    "--precision": "dtype bf16 fp16 fp32 half amp",
    "--parallel": "ddp fsdp strategy",
    "--track": "wandb tensorboard logger log_to report_to wandb_log",
    "--dry-run": "check simulate estimate",
    "--prompts": "prompt_file prompts_file",
}

# Command -> its names in other tools; the first match counts.
COMMANDS = {
    "prepare": "tokenize tokenise preprocess preparedata download import encode ingest build",
    "train": "pretrain fit run start resume continue learn",
    "finetune": "tune sft instruct",
    "sample": "generate complete completion infer inference predict prompt",
    "chat": "talk converse ask",
    "serve": "server api web webui ui playground host",
    "eval": "evaluate test perplexity ppl lmeval validate",
    "plot-loss": "plot loss graph curve figure",
    "report": "html dashboard summary",
    "watch": "monitor status tail logs log progress live",
    "plan": "estimate cost budget dryrun",
    "export gguf": "convert quantize save gguf ollama",
    "export hf": "huggingface safetensors transformers hub push upload",
    "runs list": "list ls runs history",
    "data list": "dataset datasets corpus corpora",
    "data show": "tokens statistics stats",
    "runs remove": "delete del rm remove clean prune",
    "runs show": "info inspect describe get show",
    "runs diff": "compare diff",
    "surprise": "score explain surprisal heatmap",
    "bench": "benchmark profile speed",
    "doctor": "check setup env diagnose gpu",
    "config": "settings presets options configure init",
    "quickstart": "auto go one demo tutorial example getstarted hello",
}

# Flags of other tools that are values here: --bf16 is --precision bf16.
VALUES = {
    "bf16": "bf16", "fp16": "fp16", "half": "fp16", "fp32": "fp32", "ddp": "ddp", "fsdp": "fsdp", "cpu": "cpu", "cuda": "cuda",
    "gpu": "cuda", "wandb": "wandb", "tensorboard": "tensorboard",
}  # fmt: skip

# Options of other tools for what is an argument here, as a prompt or a file.
ARGUMENTS = {"prompt", "text", "input", "inputs", "file", "files", "source", "path", "run", "inputfile", "infile"}


def correct_option(typed: str, context: Any) -> tuple[str, str]:
    """Return why an option is unknown, and what to type; `context` is the click context of the command."""
    key, command = normalize_name(typed), context.command
    options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
    help_line, value = f"Try: {context.command_path} --help", _typed_value(typed)
    if option := _find_option(key, options):
        unit = " The budget is in tokens." if option == "--tokens" else ""
        return f"It is called {option} here.{unit}", _retype(option, key, value) or help_line
    if key in ARGUMENTS and (argument := _argument_of(command)):
        return f"{argument} is typed without an option.", f"Type: {context.command_path} {value}"
    if "--set" in options and (answer := _find_setting(typed, value)):
        return answer[0], answer[1] or help_line
    # Last, as a near spelling is the weakest evidence.
    near = difflib.get_close_matches(typed, options, n=1)
    return f"Did you mean {near[0]}?" if near else "", help_line


def _find_option(key: str, options: list[str]) -> str:
    """Find the option that is spelled in another way, or has another name in other tools; empty when there is none."""
    respelled = (option for option in options if normalize_name(option) == key)
    renamed = (option for option, names in OPTIONS.items() if option in options and key in map(normalize_name, names.split()))
    return next(respelled, "") or next(renamed, "")


def _retype(option: str, key: str, value: str) -> str:
    """Return the line that says what to type; empty when the value that was typed can't be used."""
    if key in VALUES and option in ("--precision", "--parallel", "--device", "--track"):
        return f"Type: {option} {VALUES[key]}"
    # Other tools count epochs or steps where --tokens counts tokens, and --resume takes no value.
    if not value or option in ("--tokens", "--resume"):
        return "Example: --tokens 2M" if option == "--tokens" else ""
    return f"Type: {option} bpe:{value}" if option == "--tokenizer" and value.isdecimal() else f"Type: {option} {value}"


def _find_setting(typed: str, value: str) -> tuple[str, str] | None:
    """Explain an option of other tools that is a setting here or has no counterpart; None for an unknown name."""
    other = translate_name(typed)
    setting = other.setting if other else find_by_key(typed)
    note = other.note if other else ""
    if not setting:
        return (note, "") if note else None
    # A note may be about another unit, in which the number would mislead; a batch size that fitted elsewhere is a fair guess.
    shown = value if value and (not note or setting == "train.micro_batch") else "VALUE"
    return f"It is the setting {setting}. {note}".rstrip(), f"Type: --set {setting}={shown}"


def correct_command(typed: str, context: Any) -> tuple[str, str]:
    """Return the name here of an unknown command, and what to type."""
    key, group = normalize_name(typed), "" if context.parent is None else f"{context.info_name} "
    names = sorted(context.command.commands)
    renamed = [name for name, others in COMMANDS.items() if name.startswith(group) and key in others.split()]
    if renamed:
        return f"It is called {renamed[0]} here.", f"Try: llamactl {renamed[0]} --help"
    near = difflib.get_close_matches(typed, names, n=1)
    why = f"Did you mean {near[0]}?" if near else f"Choose from: {', '.join(names)}."
    return why, f"Try: {context.command_path} --help"


def _argument_of(command: Any) -> str:
    """Return the name of the first argument of a command as its help shows it; empty for none."""
    arguments = (parameter for parameter in command.params if parameter.param_type_name == "argument")
    return next(((argument.metavar or argument.name).strip("[].").upper() for argument in arguments), "")


def _typed_value(typed: str) -> str:
    """Find the value that was typed after an option, as `--lr 3e-4` or `--lr=3e-4`, quoted; empty for none."""
    # From sys.argv, as click reports an unknown option without its value.
    for number, word in enumerate(sys.argv):
        if word == typed:
            following = sys.argv[number + 1 : number + 2]
            return shlex.quote(following[0]) if following and not following[0].startswith("--") else ""
        if word.startswith(f"{typed}="):
            return shlex.quote(word.partition("=")[2])
    return ""
