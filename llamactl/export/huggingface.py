"""Export a checkpoint for sharing: a smaller Hugging Face folder with a model card."""

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.checkpoint.hf_config import check_published, find_architecture, read_hf_config
from llamactl.checkpoint.huggingface import description_files
from llamactl.checkpoint.select import describe_model
from llamactl.checkpoint.snapshot import split_into_files, take_snapshot
from llamactl.config.parameters import num_params
from llamactl.config.schema import Config, ModelConfig
from llamactl.errors import DataError, UserError
from llamactl.escape import escape_markdown
from llamactl.export.publish import name_export, publish_folder
from llamactl.model.llama import Llama
from llamactl.runs.run_dir import run_of
from llamactl.runs.summary import read_evaluation
from llamactl.storage.records import read_file
from llamactl.tokenizer.bpe import Tokenizer

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
PNG = b"\x89PNG"  # the first bytes of every PNG file
HELD_AGAINST = 64  # tokens whose logits are compared
TOLERANCE = 1e-4


def export_hf(path: Path, into: Path, kind: str) -> Path:
    """Write the folder `into`/NAME-stepN-KIND and return its path; raises DataError when the logits of the export differ.

    In an existing folder only the files of an earlier export are replaced; raises UsageError when one of them was edited.
    """
    model, tokenizer, state = checkpoint_io.load_model(path, torch.device("cpu"))
    check_published(model.config, "Hugging Face")
    dtype = DTYPES[kind]
    config = model.config.model_copy(update={"vocab_size": tokenizer.vocab_size})
    folder = into / name_export(path, state, kind)
    weights = {
        name: trim_vocabulary(tensor, tokenizer.vocab_size, model.config).to(dtype) for name, tensor in _weights(model).items()
    }
    with publish_folder(folder) as draft:
        for file, parts in split_into_files(weights):
            draft.write(file, parts)
        for name, content in description_files(config, tokenizer, str(dtype).removeprefix("torch.")).items():
            draft.write(name, [content.encode()])
        picture = _picture(path)
        if picture:
            draft.write("loss.png", [picture])
        draft.write("README.md", [card(path, config, tokenizer, state, kind, bool(picture)).encode()])
        check(draft.path, model, dtype, tokenizer)
    return folder


def trim_vocabulary(tensor: Tensor, vocab_size: int, config: ModelConfig) -> Tensor:
    """Remove the padding rows of a matrix over the vocabulary, whose rows the model pads to a multiple of 128."""
    return tensor[:vocab_size] if tensor.ndim == 2 and len(tensor) == config.vocab_size else tensor


def check(folder: Path, model: Llama, dtype: torch.dtype, tokenizer: Tokenizer) -> None:
    """Load the folder and compare its logits with those of the model rounded to the same dtype; raises DataError."""
    loaded = Llama(read_hf_config(folder))
    files = [file.name for file in folder.iterdir()]
    found = {name: tensor.float() for name, tensor in checkpoint_io.load_weights(folder, files).items()}
    if loaded.config.tie_embeddings:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    loaded.load_state_dict(found)
    rounded = Llama(model.config)
    rounded.load_state_dict({name: tensor.to(dtype).float() for name, tensor in model.state_dict().items()})
    generator = torch.Generator().manual_seed(0)
    length = min(HELD_AGAINST, model.config.context)
    ids = torch.randint(0, tokenizer.vocab_size, (1, length), generator=generator)
    with torch.inference_mode():
        difference = (loaded(ids) - rounded(ids)[..., : tokenizer.vocab_size]).abs().max().item()
    if not difference <= TOLERANCE:
        raise DataError(f"{folder} is not the model: its logits differ by {difference:.3g}.", "It was written wrongly.")


def card(path: Path, config: ModelConfig, tokenizer: Tokenizer, state: State, kind: str, pictured: bool) -> str:
    """Return the model card, README.md: what the model is, its loss, how it was trained and its limits.

    Names are escaped so that they are not Markdown.
    """
    settings, command = _made(path)
    origin = "converted by" if checkpoint_format.is_foreign(path) else "trained from scratch with"
    architecture = find_architecture(config).name.removesuffix("ForCausalLM")
    picture = "\n![The loss of its training](loss.png)\n" if pictured else ""
    trained = f"{escape_markdown(settings.data.name)}, {state.tokens:,} tokens" if settings else f"{state.tokens:,} tokens"
    shaped = f"{config.n_layers} layers, width {config.dim}, {config.n_heads} heads, {config.n_kv_heads} key/value heads"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [llama, llamactl]
---

# {escape_markdown(describe_model(path, state).partition(" at step ")[0])}

A {architecture} of {num_params(config):,} parameters, {origin} llamactl.

| | |
|---|---|
| shape | {shaped} |
| context | {config.context:,} tokens |
| vocabulary | {config.vocab_size:,} ids |
| trained on | {trained}, {state.step:,} steps, {state.seconds / 3600:.2f} hours |
| validation loss | {_loss(path, state)} |
| stored as | {kind} |
| made by | {escape_markdown(command) or "unknown"} |
{picture}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
```

{_describe_use(tokenizer, settings)}
"""


def _describe_use(tokenizer: Tokenizer, settings: Config | None) -> str:
    """Say what a model can do and how a prompt begins, as far as that is known."""
    opening = ""
    if tokenizer.start:
        opening = f"Documents began with `{tokenizer.name_of(tokenizer.start[0])}` in training; begin a prompt with it too."
    if tokenizer.chat_template:
        return f"The model that it comes from has a chat template, which is in tokenizer_config.json. {opening}".rstrip()
    if settings is None or settings.train.init_from:
        return f"It repeats what its corpus says, true or not. {opening}".rstrip()
    return (
        "It continues a text and has learned nothing else: no questions, no instructions, no refusals. It repeats what its\n"
        f"corpus says, true or not. {opening}"
    )


def _loss(path: Path, state: State) -> str:
    """Return the validation loss in words: that of the whole held-out split where it was measured."""
    loss = read_evaluation(path, state.step).get("loss", state.validation_loss)
    return "not measured" if loss is None else f"{loss:.4f} nats per token"


def _made(path: Path) -> tuple[Config | None, str]:
    """Return the config and the command of the checkpoint's run, or None and an empty text where they can't be read."""
    with suppress(UserError):
        if run := run_of(path):
            return run.config(), run.environment().get("command", "")
    return None, ""


def _picture(path: Path) -> bytes:
    """Return the bytes of the run's loss.png; empty if there is none, it can't be read or it is not a PNG. Raises nothing."""
    with suppress(UserError):
        if (run := run_of(path)) and (content := read_file(run.loss_path, run.path)).startswith(PNG):
            return content
    return b""


def _weights(model: Llama) -> dict[str, Tensor]:
    return take_snapshot(model, []).weights
