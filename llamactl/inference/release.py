"""A checkpoint to give away: a smaller Hugging Face folder, with a card that says what it is and how it was made."""

from pathlib import Path

import torch
from torch import Tensor

from llamactl import checkpoint, durable
from llamactl.artifacts import RunDir
from llamactl.checkpoint import State
from llamactl.config import Config, ModelConfig
from llamactl.errors import BadData, UserError
from llamactl.hugging_face import descriptions, shape
from llamactl.model.llama import Llama, count
from llamactl.tokenizer import Tokenizer

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
HELD_AGAINST = 64  # tokens whose logits are compared
TOLERANCE = 1e-4


def export(path: Path, into: Path, kind: str) -> Path:
    """Write the folder `into`/NAME-stepN-KIND; raises BadData when what was written has other logits."""
    model, tokenizer, state = checkpoint.load_model(path, torch.device("cpu"))
    dtype = DTYPES[kind]
    config = model.config.model_copy(update={"vocab_size": tokenizer.vocab_size})
    run = RunDir(path.absolute().parents[1])
    folder = into / f"{run.path.name}-step{state.step}-{kind}"
    weights = {name: trimmed(tensor, tokenizer.vocab_size, model.config).to(dtype) for name, tensor in _weights(model).items()}
    with durable.filling(folder) as draft:
        for file, parts in checkpoint.weight_files(weights):
            draft.write(file, parts)
        for name, content in descriptions(config, tokenizer, str(dtype).removeprefix("torch.")).items():
            draft.write(name, [content.encode()])
        if run.loss_path.exists():
            draft.write("loss.png", [run.loss_path.read_bytes()])
        draft.write("README.md", [card(run, config, state, kind).encode()])
        check(draft.path, model, dtype, tokenizer)
    return folder


def trimmed(tensor: Tensor, vocab_size: int, config: ModelConfig) -> Tensor:
    """A matrix with a row for each id that there is; the model has more, up to a multiple of 128."""
    return tensor[:vocab_size] if tensor.ndim == 2 and len(tensor) == config.vocab_size else tensor


def check(folder: Path, model: Llama, dtype: torch.dtype, tokenizer: Tokenizer) -> None:
    """Load the folder, and hold its logits against those of the model with its weights rounded to the same format."""
    loaded = Llama(shape(folder))
    files = [file.name for file in folder.iterdir()]
    found = {name: tensor.float() for name, tensor in checkpoint.weights(folder, files).items()}
    if loaded.config.tied:
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
        raise BadData(f"{folder} is not the model: its logits differ by {difference:.3g}.", "It was written wrongly.")


def card(run: RunDir, config: ModelConfig, state: State, kind: str) -> str:
    """README.md: what the model is, how good, how it was made and what not to expect of it."""
    settings, command = _made(run)
    picture = "\n![The loss of its training](loss.png)\n" if run.loss_path.exists() else ""
    loss = "not measured" if state.validation_loss is None else f"{state.validation_loss:.4f} nats per token"
    trained = f"{settings.data.name}, {state.tokens:,} tokens" if settings else f"{state.tokens:,} tokens"
    shaped = f"{config.layers} layers, width {config.width}, {config.heads} heads, {config.kv_heads} key/value heads"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [llama, llamactl]
---

# {run.path.name}

A plain Llama of {count(config):,} parameters, trained from scratch with llamactl.

| | |
|---|---|
| shape | {shaped} |
| context | {config.context:,} tokens |
| vocabulary | {config.vocab_size:,} ids |
| trained on | {trained}, {state.step:,} steps, {state.seconds / 3600:.2f} hours |
| validation loss | {loss} |
| stored as | {kind} |
| made by | `{command or "unknown"}` |
{picture}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
```

It goes on from a text and has learned nothing else: no questions, no instructions, no refusals. It repeats what its corpus
says, true or not. Documents began with `<|endoftext|>` in training; begin a prompt with it too.
"""


def _made(run: RunDir) -> tuple[Config | None, str]:
    """The config and the command of the run that a checkpoint is of, as far as they are beside it."""
    try:
        return run.config(), str(run.environment().get("command", ""))
    except UserError:
        return None, ""


def _weights(model: Llama) -> dict[str, Tensor]:
    return checkpoint.snapshot(model, []).weights
