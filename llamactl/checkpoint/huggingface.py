"""Files that make a folder of weights a Hugging Face model: config.json, tokenizer and generation settings."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llamactl.config.schema import ModelConfig
from llamactl.errors import DataError
from llamactl.storage.records import explain_error, read_object, to_json
from llamactl.tokenizer.bpe import END_OF_TEXT, Tokenizer


def description_files(config: ModelConfig, tokenizer: Tokenizer, dtype: str = "float32") -> dict[str, str]:
    """Build the text of each file that transformers needs besides weights stored as `dtype`, by file name."""
    # Documents are separated by one end-of-text token, so it begins and ends a text.
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
        "config.json": hf_config(config, dtype) | end,
        "generation_config.json": generation,
        "tokenizer_config.json": tokens,
    }
    texts = {name: to_json(tree, indent=2) + "\n" for name, tree in trees.items()}
    return {**texts, "tokenizer.json": tokenizer.description}


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


def hf_config(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """Build config.json of LlamaForCausalLM, with old and new key names, so that all versions read the same model."""
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
        # transformers 5 reads dtype, earlier ones torch_dtype.
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _rope(config: ModelConfig) -> dict[str, Any]:
    """Build the keys of RoPE: rope_scaling of transformers 4, rope_parameters of transformers 5."""
    scaled = config.rope_scaling > 1
    linear = {"rope_type": "linear", "factor": config.rope_scaling}
    kind = linear if scaled else {"rope_type": "default"}
    return {"rope_scaling": linear if scaled else None, "rope_parameters": {**kind, "rope_theta": config.rope_theta}}


def read_hf_config(path: Path, root: Path | None = None) -> ModelConfig:
    """Read the model settings in config.json; raises DataError for a model that is not a plain Llama."""
    file = path / "config.json"
    tree = read_object(file, root)
    try:
        sizes = {ours: tree[theirs] for ours, theirs in NAMES.items()}
        return ModelConfig.model_validate({**sizes, "rope_scaling": _rope_scaling(tree)})
    except ValidationError as error:
        raise DataError(f"{file} does not describe a plain Llama.", explain_error(error)) from error
    except KeyError as error:
        raise DataError(f"{file} does not describe a plain Llama.", f"It has no {error}.") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} does not describe a plain Llama.", str(error)) from error


def _rope_scaling(tree: dict[str, Any]) -> float:
    """Read the factor that positions are divided by; raises ValueError for other types of RoPE scaling."""
    # A file may have both keys, as ours does; they must agree.
    ropes = [tree[key] for key in ("rope_scaling", "rope_parameters") if tree.get(key)]
    if not all(isinstance(rope, dict) for rope in ropes):
        raise ValueError("Its rope_scaling or rope_parameters is not an object.")
    factors = [_factor(rope) for rope in ropes]
    if len(set(factors)) > 1:
        raise ValueError("Its rope_scaling and rope_parameters contradict each other.")
    return factors[0] if factors else 1.0


def _factor(rope: dict[str, Any]) -> float:
    kind, factor = rope.get("rope_type", rope.get("type", "default")), rope.get("factor")
    if kind == "default":
        return 1.0
    if kind != "linear":
        raise ValueError(f"Its rope_type is {kind!r}; only 'default' and 'linear' are supported.")
    # JSON's true is a bool, which Python counts as an int.
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not factor >= 1:
        raise ValueError(f"The factor of its rope is {factor!r}, not a number of at least 1.")
    return factor
