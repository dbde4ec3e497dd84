"""Checkpoints: a folder that Hugging Face's transformers loads as it is, with the optimizer beside the weights.

No pickle: tensors are safetensors, the rest is JSON. state.json is written last and holds the other files' hashes.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from llamactl import durable
from llamactl.artifacts import Record, RunDir, read
from llamactl.config import ModelConfig
from llamactl.errors import BadData, UserError
from llamactl.model.llama import Llama
from llamactl.tokenizer import END_OF_TEXT, Tokenizer

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


class State(Record):
    """state.json: where the run stood, and the sha256 of every other file of the checkpoint."""

    format: Literal[1] = 1
    step: int = Field(ge=0)
    tokens: int = Field(ge=0)
    seconds: float = Field(ge=0)
    validation_loss: float | None = None
    micro_batch: int = Field(0, ge=0, description="windows at once that memory allowed; 0: not known")
    scaler: dict[str, int | float] = Field(default_factory=dict, description="fp16 only: how far gradients are scaled up")
    files: dict[str, str] = Field(default_factory=dict)


def save(path: Path, model: Llama, tokenizer: Tokenizer, optimizers: list[Optimizer], state: State) -> None:
    """Write a checkpoint folder, which appears complete or not at all."""
    with durable.filling(path) as draft:
        weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        if model.config.tied:
            del weights["lm_head.weight"]
        save_file(weights, draft / WEIGHTS, metadata={"format": "pt"})
        save_file(_optimizer_tensors(model, optimizers), draft / OPTIMIZER, metadata={"format": "pt"})
        for name, content in _descriptions(model.config, tokenizer).items():
            (draft / name).write_text(content, "utf-8")
        hashes = {file.name: durable.sha256(file) for file in sorted(draft.iterdir())}
        (draft / STATE).write_text(state.model_copy(update={"files": hashes}).model_dump_json(indent=1) + "\n", "utf-8")


def restore(path: Path, model: Llama, optimizers: list[Optimizer]) -> State:
    """Put a checkpoint's weights and optimizer state into place, in a model of the same shape."""
    state = restore_weights(path, model)
    tensors = load_file(path / OPTIMIZER)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            prefix = f"{names[parameter]}:"
            found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            optimizer.state[parameter] = {key: tensor.to(parameter.device, copy=True) for key, tensor in found.items()}
    return state


def restore_weights(path: Path, model: Llama) -> State:
    """Put a checkpoint's weights into place, and nothing else, in a model whose weights have the same shapes."""
    state = verified(path)
    model.load_state_dict(_weights(path, model.config))
    return state


def load_model(path: Path, device: torch.device) -> tuple[Llama, Tokenizer, State]:
    """The model of a checkpoint, ready to use, its tokenizer, and where its run stood."""
    state = verified(path)
    config = shape(path)
    with torch.device("meta"):
        model = Llama(config)
    model.load_state_dict(_weights(path, config), assign=True)
    model.tie()
    return model.to(device).eval(), Tokenizer((path / "tokenizer.json").read_text("utf-8")), state


def verified(path: Path) -> State:
    """The state of a checkpoint whose every file has its hash; raises BadData that names the one that hasn't."""
    state = read(path / STATE, State)
    for name, digest in state.files.items():
        if Path(name).name != name or not (path / name).is_file() or durable.sha256(path / name) != digest:
            raise BadData(f"{path / name} is damaged: its sha256 is not the one in {STATE}.")
    return state


def newest(run: RunDir) -> tuple[Path | None, tuple[str, ...]]:
    """The newest checkpoint that is sound, and what is wrong with newer ones."""
    damaged: list[str] = []
    for step in reversed(run.steps()):
        try:
            verified(run.checkpoint(step))
        except UserError as error:
            damaged.append(error.what)
        else:
            return run.checkpoint(step), tuple(damaged)
    return None, tuple(damaged)


def find(name: str) -> Path:
    """The checkpoint that a person means: RUN, RUN@STEP or RUN@best; an empty RUN is the newest. Raises BadData."""
    run_name, _, which = name.partition("@")
    run = RunDir.named(run_name).existing()
    if not which:
        path, damaged = newest(run)
        if path is None:
            why = damaged[0] if damaged else "It was stopped before its first one."
            raise BadData(f"The run {run.path.name} has no checkpoint.", why, "Go on training: llamactl train --resume")
        return path
    step = best(run) if which == "best" else int(which) if which.isdecimal() else None
    if step not in run.steps():
        kept = ", ".join(map(str, run.steps())) or "none"
        raise BadData(f"The run {run.path.name} has no checkpoint {which!r}.", f"It has the steps: {kept}.")
    return run.checkpoint(step)


def locate(name: str) -> Path:
    """The checkpoint that `find` knows by a name, or the one in the folder of a path; raises BadData."""
    path = Path(name)
    if len(path.parts) <= 1 and not (path / STATE).exists():
        return find(name)
    if not (path / STATE).is_file():
        fix = "A checkpoint is RUN, RUN@STEP, RUN@best or the path of a folder like runs/RUN/checkpoints/step-00000250."
        raise BadData(f"{path} is not a checkpoint.", f"It has no {STATE}.", fix)
    return path


def best(run: RunDir) -> int | None:
    """The step of the checkpoint with the smallest validation loss."""
    losses = {step: read(run.checkpoint(step) / STATE, State).validation_loss for step in run.steps()}
    known = {step: loss for step, loss in losses.items() if loss is not None}
    return min(known, key=lambda step: known[step]) if known else None


def prune(run: RunDir, keep: int) -> None:
    """Remove checkpoints but for the newest `keep` and the best."""
    for step in run.steps()[:-keep]:
        if step != best(run):
            durable.remove(run.checkpoint(step))


def _optimizer_tensors(model: Llama, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """Optimizer state under the names of the weights it belongs to: `model.norm.weight:exp_avg`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    states = (item for optimizer in optimizers for item in optimizer.state.items())
    return {f"{names[p]}:{key}": tensor.contiguous() for p, state in states for key, tensor in state.items()}


def _weights(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    try:
        weights = load_file(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise BadData(f"{path / WEIGHTS} is damaged.", str(error)) from error
    if config.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def _descriptions(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """The small files that make a folder of weights a Hugging Face model."""
    end = {"bos_token_id": tokenizer.end, "eos_token_id": tokenizer.end}
    generation = {**end, "do_sample": True, "temperature": 0.8, "top_k": 50, "max_new_tokens": 200}
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.context,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    trees = {
        "config.json": hugging_face(config) | end,
        "generation_config.json": generation,
        "tokenizer_config.json": tokens,
    }
    written = {name: json.dumps(tree, indent=2) + "\n" for name, tree in trees.items()}
    return {**written, "tokenizer.json": tokenizer.description}


# Our names of the numbers that fix a shape, and Hugging Face's.
NAMES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "tied": "tie_word_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
}


def hugging_face(config: ModelConfig) -> dict[str, Any]:
    """config.json of LlamaForCausalLM, with old and new spellings, so that every version reads the same model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
        **_rope(config),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "pad_token_id": None,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _rope(config: ModelConfig) -> dict[str, Any]:
    """How positions are scaled, as versions before 5 spell it and as later ones do."""
    scaled = config.rope_scaling > 1
    linear = {"rope_type": "linear", "factor": config.rope_scaling}
    kind = linear if scaled else {"rope_type": "default"}
    return {"rope_scaling": linear if scaled else None, "rope_parameters": {**kind, "rope_theta": config.rope_theta}}


def shape(path: Path) -> ModelConfig:
    """The shape of a checkpoint's model; raises BadData when its config.json says anything that a plain Llama hasn't."""
    file = path / "config.json"
    try:
        tree = json.loads(file.read_bytes())
        sizes = {ours: tree[theirs] for ours, theirs in NAMES.items()}
        return ModelConfig.model_validate({**sizes, "rope_scaling": _rope_scaling(tree)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadData(f"{file} does not describe a plain Llama.", str(error).splitlines()[0]) from error


def _rope_scaling(tree: dict[str, Any]) -> float:
    """The factor that positions are divided by, from either spelling; raises ValueError for any other kind of rope."""
    ropes = [tree[spelling] for spelling in ("rope_scaling", "rope_parameters") if tree.get(spelling)]
    factors = [_factor(rope) for rope in ropes]
    if len(set(factors)) > 1:
        raise ValueError("Its rope_scaling and rope_parameters contradict each other.")
    return factors[0] if factors else 1.0


def _factor(rope: dict[str, Any]) -> float:
    kind, factor = rope.get("rope_type", rope.get("type", "default")), rope.get("factor")
    if kind == "default":
        return 1.0
    if kind != "linear":
        raise ValueError(f"Its rope_type is {kind!r}; only 'default' and 'linear' are known here.")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not factor >= 1:
        raise ValueError(f"The factor of its rope is {factor!r}, not a number of at least 1.")
    return factor
