"""A checkpoint as one GGUF file, as llama.cpp, Ollama and LM Studio read it, checked after it is written.

Written with llama.cpp's own `gguf` package. Its Llama turns neighbouring channels by an angle where ours turns a channel
and the one half a head away, so the rows of q_proj and k_proj change places.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamactl import checkpoint, durable
from llamactl.config import ModelConfig
from llamactl.errors import BadData, UserError
from llamactl.model.llama import Llama
from llamactl.tokenizer import END_OF_TEXT, Tokenizer

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TYPES = ("f32", "f16", "bf16", "q8_0")
# How far a stored number may be from the trained one, as a share of the largest of its row.
TOLERANCES = {"f32": 0.0, "f16": 6e-4, "bf16": 4e-3, "q8_0": 5e-3}
MODELFILE = 'FROM ./{file}\nTEMPLATE "{{{{ .Prompt }}}}"\nPARAMETER stop "{end}"\nPARAMETER temperature 0.8\n'


def export(path: Path, into: Path, kind: str) -> Path:
    """Write `into`/NAME-KIND.gguf and a Modelfile for Ollama; raises BadData when what was written is not the model."""
    gguf = _library()
    model, tokenizer, state = checkpoint.load_model(path, torch.device("cpu"))
    name = path.absolute().parents[1].name
    file = into / f"{name}-step{state.step}-{kind}.gguf"
    draft = file.with_name(f".{file.name}.draft")
    with durable.explained(file):
        durable.make(into)
        writer = gguf.GGUFWriter(draft, "llama")
        describe(writer, gguf, model.config, tokenizer, f"{name}, step {state.step}", kind)
        for tensor, values in tensors(model, tokenizer.vocab_size):
            stored = kind if values.ndim == 2 else "f32"
            data, quantised = _encoded(gguf, values.numpy(), stored, tensor)
            writer.add_tensor(tensor, data, raw_dtype=quantised)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        check(gguf, draft, model, tokenizer.vocab_size, kind)
        durable.sync(draft)
        draft.replace(file)
        durable.sync(into)
    durable.write(into / "Modelfile", MODELFILE.format(file=file.name, end=END_OF_TEXT))
    return file


def describe(writer: Any, gguf: Any, config: ModelConfig, tokenizer: Tokenizer, name: str, kind: str) -> None:
    """The shape, and the tokenizer, as llama.cpp asks for them."""
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, {"f32": "ALL_F32"}.get(kind, f"MOSTLY_{kind.upper()}")))
    writer.add_vocab_size(tokenizer.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_width)
    if config.rope_scaling > 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling)
    tree = json.loads(tokenizer.description)
    vocabulary = sorted(tree["model"]["vocab"].items(), key=lambda item: int(item[1]))
    words = [word for word, _ in vocabulary if word != END_OF_TEXT]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tree["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*words, END_OF_TEXT])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.end)
    writer.add_eos_token_id(tokenizer.end)
    writer.add_add_bos_token(True)  # documents begin with it in training
    writer.add_add_space_prefix(False)


def tensors(model: Llama, vocab_size: int) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under its name there, without the rows that only pad the vocabulary."""
    config = model.config
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}
    weights = checkpoint.snapshot(model, []).weights
    for name, values in weights.items():
        stem = name.removesuffix(".weight")
        if stem in OUTER:
            trimmed = values[:vocab_size] if values.ndim == 2 else values
            yield f"{OUTER[stem]}.weight", trimmed.float()
            continue
        _, _, layer, part = stem.split(".", 3)
        inner = NAMES[part]
        turned = interleaved(values, heads[inner]) if inner in heads else values
        yield f"blk.{layer}.{inner}.weight", turned.float().contiguous()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows (H E x D) in the order that puts the two halves of each head's channels side by side."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def check(gguf: Any, path: Path, model: Llama, vocab_size: int, kind: str) -> None:
    """Read the file again: every tensor must be there, and near enough to the trained one."""
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, values in tensors(model, vocab_size):
        if name not in found:
            raise BadData(f"{path} lacks {name}.", "It was written wrongly.")
        stored = torch.from_numpy(np.array(gguf.dequantize(found[name].data, found[name].tensor_type))).view_as(values)
        bound = TOLERANCES[kind if values.ndim == 2 else "f32"] * values.abs().amax(-1, keepdim=True)
        if not bool(((stored - values).abs() <= bound + 1e-12).all()):
            raise BadData(f"{name} in {path} is not the model's.", "It was written wrongly.")


def _encoded(gguf: Any, values: np.ndarray, kind: str, name: str) -> tuple[np.ndarray, Any]:
    quantised = getattr(gguf.GGMLQuantizationType, kind.upper())
    try:
        return gguf.quantize(values, quantised), quantised
    except gguf.QuantError as error:
        why = f"{name} has rows of {values.shape[-1]} numbers, and {kind} stores them by 32."
        raise BadData(f"This model can't be stored as {kind}.", why, "Take another type: --type bf16") from error


def _library() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        why = "The package gguf is not installed."
        raise UserError("A GGUF file can't be written.", why, "Install it: pip install 'llamactl[gguf]'") from error
    return gguf
