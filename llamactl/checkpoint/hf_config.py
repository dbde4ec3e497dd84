"""config.json of Hugging Face: written for the class that has the model's weights, and read for all that Llama's family shares.

Llama, Mistral, Qwen2 (biases of queries, keys and values) and Qwen3 (norms of queries and keys) differ in settings only.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from llamactl.config.schema import ModelConfig
from llamactl.errors import DataError
from llamactl.model.llama import build_empty
from llamactl.storage.records import explain_error, read_object

# Settings of the model by our names, and by Hugging Face's.
NAMES = {
    "n_layers": "num_hidden_layers",
    "dim": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn_dim": "intermediate_size",
    "context": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "tie_embeddings": "tie_word_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
}
# What transformers takes for a key that a config.json leaves out.
LEFT_OUT = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
# Keys that must have one of these values (None: or be left out), as the model here computes nothing else.
FIXED = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
    "partial_rotary_factor": (1.0, None),
}
READABLE = ("llama", "mistral", "qwen2", "qwen3")


class Architecture(NamedTuple):
    """A class of transformers, its name in config.json and what is written for it alone."""

    model_type: str
    name: str
    keys: Mapping[str, Any]


LLAMA = Architecture("llama", "LlamaForCausalLM", {"attention_bias": False, "mlp_bias": False})
QWEN2 = Architecture("qwen2", "Qwen2ForCausalLM", {"use_sliding_window": False})
QWEN3 = Architecture("qwen3", "Qwen3ForCausalLM", {"attention_bias": False, "use_sliding_window": False})
# A model whose code was changed, so that it has other weights: no program but this copy of llamactl computes it.
EDITED = "llamactl"


def find_architecture(config: ModelConfig) -> Architecture:
    """Return the class that computes what a model with these settings does."""
    if is_edited(config):
        return Architecture(EDITED, "EditedLlama", {"qk_norm": config.qk_norm, "qkv_bias": config.qkv_bias})
    return QWEN3 if config.qk_norm else QWEN2 if config.qkv_bias else LLAMA


@lru_cache(maxsize=8)
def is_edited(config: ModelConfig) -> bool:
    """Check whether the model has other weights than the class in config.json would have: somebody changed its code."""
    return build_empty(config).state_dict().keys() != _published_names(config)


def check_published(config: ModelConfig, program: str) -> None:
    """Raise DataError for a model that another program has no class for."""
    if is_edited(config):
        what = f"This model is no longer a plain Llama: {program} will not load it."
        raise DataError(what, "Its code was changed, and it has other weights than any class that other programs know.")


def _published_names(config: ModelConfig) -> set[str]:
    """Return the names of the weights in a folder of the class, as transformers writes them."""
    layers = [f"self_attn.{name}_proj.weight" for name in "qkvo"] + [
        f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    ]
    layers += ["input_layernorm.weight", "post_attention_layernorm.weight"]
    layers += [f"self_attn.{name}_norm.weight" for name in "qk" if config.qk_norm]
    layers += [f"self_attn.{name}_proj.bias" for name in "qkv" if config.qkv_bias]
    outer = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    return outer | {f"model.layers.{number}.{name}" for number in range(config.n_layers) for name in layers}


def hf_config(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """Build config.json, with old and new key names, so that all versions of transformers read the same model."""
    architecture = find_architecture(config)
    return {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
        **_write_rope(config),
        "hidden_act": "silu",
        **architecture.keys,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "pad_token_id": None,
        # transformers 5 reads dtype, earlier ones torch_dtype.
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _write_rope(config: ModelConfig) -> dict[str, Any]:
    """Build the keys of RoPE: rope_scaling of transformers 4, rope_parameters of transformers 5."""
    kind: dict[str, Any] = {"rope_type": "default"}
    if config.rope_original_context:
        kind = {
            "rope_type": "llama3",
            "factor": config.rope_scaling,
            "low_freq_factor": config.rope_low_freq,
            "high_freq_factor": config.rope_high_freq,
            "original_max_position_embeddings": config.rope_original_context,
        }
    elif config.rope_scaling > 1:
        kind = {"rope_type": "linear", "factor": config.rope_scaling}
    scaled = kind["rope_type"] != "default"
    return {"rope_scaling": kind if scaled else None, "rope_parameters": {**kind, "rope_theta": config.rope_theta}}


def read_hf_config(path: Path, root: Path | None = None) -> ModelConfig:
    """Read the settings of the model in a folder; raises DataError for one that this model can't be, by name.

    Without a `root` the file may be a link, as it is in the hub's cache.
    """
    file = path / "config.json"
    tree = read_object(file if root else file.resolve(), root)
    kind = tree.get("model_type", "llama")
    if kind not in (*READABLE, EDITED):
        what = f"{file} describes a model of the type {kind!r}."
        raise DataError(what, f"llamactl runs {', '.join(READABLE[:-1])} and {READABLE[-1]}.")
    try:
        _check_computed_here(kind, tree)
        own = {name: tree[name] for name in ("qk_norm", "qkv_bias")} if kind == EDITED else {}
        extras = {"qk_norm": kind == "qwen3", "qkv_bias": kind == "qwen2"} | own
        return ModelConfig.model_validate({**_read_sizes(tree), **_read_rope(tree), **extras})
    except ValidationError as error:
        raise DataError(f"{file} can't be used.", explain_error(error)) from error
    except KeyError as error:
        raise DataError(f"{file} can't be used.", f"It has no {error}.") from error
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise DataError(f"{file} can't be used.", str(error)) from error


def _check_computed_here(kind: str, tree: dict[str, Any]) -> None:
    """Raise ValueError for settings with which the model of that class computes something else than ours."""
    for key, values in FIXED.items():
        if tree.get(key, values[0]) not in values:
            raise ValueError(f"Its {key} is {tree[key]!r}, which llamactl does not compute.")
    if tree.get("attention_bias"):
        raise ValueError("Its attention has biases, also of the output, which llamactl does not compute.")
    window = tree.get("sliding_window") if kind == "mistral" or tree.get("use_sliding_window") else None
    sliding = "sliding_attention" in (tree.get("layer_types") or [])
    if window is not None and window < tree["max_position_embeddings"] and (sliding or kind == "mistral"):
        why = f"Its attention sees the last {window:,} of {tree['max_position_embeddings']:,} tokens only (sliding_window)"
        raise ValueError(f"{why}, which llamactl does not compute.")


def _read_sizes(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of `NAMES`; what may be left out follows from the others, as in transformers."""
    rope = next((rope for key in ("rope_parameters", "rope_scaling") if isinstance(rope := tree.get(key), dict)), {})
    heads = tree["num_attention_heads"]
    filled = {
        **LEFT_OUT,
        "num_key_value_heads": heads,
        **({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}),
        **{key: value for key, value in tree.items() if value is not None},
    }
    if "head_dim" not in filled:
        filled["head_dim"] = tree["hidden_size"] // heads
    floats = ("rms_norm_eps", "rope_theta")  # a file may have 10000 for 10000.0
    return {ours: float(filled[theirs]) if theirs in floats else filled[theirs] for ours, theirs in NAMES.items()}


def _read_rope(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of RoPE scaling; raises ValueError for a type that is not computed here."""
    # A file may have both keys, as ours does; they must agree.
    ropes = [tree[key] for key in ("rope_scaling", "rope_parameters") if tree.get(key)]
    if not all(isinstance(rope, dict) for rope in ropes):
        raise ValueError("Its rope_scaling or rope_parameters is not an object.")
    found = [_scaling(rope) for rope in ropes]
    if any(each != found[0] for each in found):
        raise ValueError("Its rope_scaling and rope_parameters contradict each other.")
    return found[0] if found else {}


def _scaling(rope: dict[str, Any]) -> dict[str, Any]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {}
    if kind not in ("linear", "llama3"):
        raise ValueError(f"Its rope_type is {kind!r}; only 'default', 'linear' and 'llama3' are supported.")
    factor = rope.get("factor")
    # JSON's true is a bool, which Python counts as an int.
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not factor >= 1:
        raise ValueError(f"The factor of its rope is {factor!r}, not a number of at least 1.")
    if kind == "linear":
        return {"rope_scaling": float(factor)}
    return {
        "rope_scaling": float(factor),
        "rope_original_context": rope["original_max_position_embeddings"],
        "rope_low_freq": float(rope["low_freq_factor"]),
        "rope_high_freq": float(rope["high_freq_factor"]),
    }
