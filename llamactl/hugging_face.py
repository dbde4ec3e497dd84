"""What makes a folder of weights a Hugging Face model: config.json and the small files beside it."""

import json
from pathlib import Path
from typing import Any

from llamactl.config import ModelConfig
from llamactl.errors import BadData
from llamactl.tokenizer import END_OF_TEXT, Tokenizer


def descriptions(config: ModelConfig, tokenizer: Tokenizer, dtype: str = "float32") -> dict[str, str]:
    """The small files that make a folder of weights, which are stored as `dtype`, a Hugging Face model."""
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
        "config.json": described(config, dtype) | end,
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


def described(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
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
        "dtype": dtype,
        "torch_dtype": dtype,
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
