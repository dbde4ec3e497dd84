"""Export a checkpoint as one GGUF file for llama.cpp, Ollama and LM Studio, and verify the file after it is written.

It is written with llama.cpp's own `gguf` package. llama.cpp's Llama applies rotary embedding to neighbouring channels, this one
to channels i and i + E/2 of a head, so the rows of q_proj and k_proj are reordered.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamactl import install_command
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.hf_config import LLAMA, check_published, find_architecture
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import ModelConfig
from llamactl.errors import DataError, UserError
from llamactl.export.gguf_tokenizer import write_tokenizer
from llamactl.export.publish import name_export, publish_files
from llamactl.model.llama import Llama, rotary_frequencies
from llamactl.storage import atomic, disk
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.chat import BEGIN, CHAT_TEMPLATE, find_turn_end

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TYPES = ("f32", "f16", "bf16", "q8_0")
# Largest difference between a stored and a trained weight, as a share of the largest absolute value in its row.
TOLERANCES = {"f32": 0.0, "f16": 6e-4, "bf16": 4e-3, "q8_0": 5e-3}
# What Ollama makes of a prompt, in Go's templates: a text as it is, and a conversation as `tokenizer.chat.CHAT_TEMPLATE` does.
PLAIN = 'TEMPLATE "{{ .Prompt }}"\n'
CONVERSATION = 'TEMPLATE "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"\n'


def export_gguf(path: Path, into: Path, kind: str) -> Path:
    """Write `into`/NAME-stepN-KIND.gguf and the Modelfile for Ollama, NAME-stepN-KIND.Modelfile; return the path of the former.

    Raises DataError when the file does not match the model, UsageError when it would replace a file that is not from an export.
    """
    gguf = _library()
    model, tokenizer, state = checkpoint_io.load_model(path, torch.device("cpu"))
    check_published(model.config, "llama.cpp")
    name = name_export(path, state, kind)
    file, modelfile = into / f"{name}.gguf", modelfile_path(into / f"{name}.gguf")
    with publish_files(into, file.name) as draft:
        written = draft.path / file.name
        writer = gguf.GGUFWriter(written, find_architecture(model.config).model_type)
        gguf_fields(writer, gguf, model.config, tokenizer, name, kind)
        for tensor, values in iter_gguf_tensors(model, tokenizer.vocab_size):
            stored = kind if values.ndim == 2 else "f32"
            data, quantised = _encoded(gguf, values.numpy(), stored, tensor)
            writer.add_tensor(tensor, data, raw_dtype=quantised)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        check(gguf, written, model, tokenizer.vocab_size, kind)
        disk.sync_path(written)
        draft.hashes[file.name] = atomic.sha256(written)
        draft.write(modelfile.name, [describe_for_ollama(file.name, tokenizer).encode()])
    return file


def describe_for_ollama(file: str, tokenizer: Tokenizer) -> str:
    """Return the Modelfile of a .gguf file, by which `ollama run` continues texts, or talks where the model can chat."""
    template, turn = tokenizer.chat_template, find_turn_end(tokenizer)
    # Ollama knows the templates of public models from the file itself.
    words = PLAIN if not template else CONVERSATION if template.endswith(CHAT_TEMPLATE.removeprefix(BEGIN)) else ""
    stops = dict.fromkeys(tokenizer.name_of(each) for each in (tokenizer.end, turn) if each is not None)
    return f"FROM ./{file}\n{words}" + "".join(f'PARAMETER stop "{stop}"\n' for stop in stops) + "PARAMETER temperature 0.8\n"


def modelfile_path(file: Path) -> Path:
    """Return the path of the Modelfile of a .gguf file; each export has its own, because it names the .gguf file."""
    return file.with_suffix(".Modelfile")


def gguf_fields(writer: Any, gguf: Any, config: ModelConfig, tokenizer: Tokenizer, name: str, kind: str) -> None:
    """Write the shape of the model and its tokenizer as the metadata that llama.cpp reads."""
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, {"f32": "ALL_F32"}.get(kind, f"MOSTLY_{kind.upper()}")))
    writer.add_vocab_size(tokenizer.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    if config.rope_scaling > 1 and not config.rope_original_context:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling)
    write_tokenizer(writer, gguf, tokenizer)


def iter_gguf_tensors(model: Llama, vocab_size: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the GGUF name and the values (fp32) of each tensor, without the rows that only pad the vocabulary."""
    config = model.config
    # Only llama.cpp's Llama applies rotary embedding to neighbouring channels.
    turned = find_architecture(config) is LLAMA
    heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads} if turned else {}
    if config.rope_original_context:
        plain = rotary_frequencies(config.model_copy(update={"rope_original_context": 0}), torch.device("cpu"))
        yield "rope_freqs.weight", plain / rotary_frequencies(config, torch.device("cpu"))
    weights = take_snapshot(model, []).weights
    for name, values in weights.items():
        stem, _, kind = name.rpartition(".")
        if stem in OUTER:
            trimmed = values[:vocab_size] if values.ndim == 2 else values
            yield f"{OUTER[stem]}.weight", trimmed.float()
            continue
        _, _, layer, part = stem.split(".", 3)
        inner = NAMES[part]
        ordered = interleave_heads(values, heads[inner]) if inner in heads else values
        yield f"blk.{layer}.{inner}.{kind}", ordered.float().contiguous()


def interleave_heads(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a projection (H E x D) so that channels i and i + E/2 of each head become neighbours."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def check(gguf: Any, path: Path, model: Llama, vocab_size: int, kind: str) -> None:
    """Read the file back; raises DataError unless each tensor is there and within the tolerance of its format."""
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, values in iter_gguf_tensors(model, vocab_size):
        if name not in found:
            raise DataError(f"{path} lacks {name}.", "It was written wrongly.")
        stored = torch.from_numpy(np.array(gguf.dequantize(found[name].data, found[name].tensor_type))).view_as(values)
        bound = TOLERANCES[kind if values.ndim == 2 else "f32"] * values.abs().amax(-1, keepdim=True)
        if not bool(((stored - values).abs() <= bound + 1e-12).all()):
            raise DataError(f"{name} in {path} is not the model's.", "It was written wrongly.")


def _encoded(gguf: Any, values: np.ndarray, kind: str, name: str) -> tuple[np.ndarray, Any]:
    quantised = getattr(gguf.GGMLQuantizationType, kind.upper())
    try:
        return gguf.quantize(values, quantised), quantised
    except gguf.QuantError as error:
        why = f"{name} has rows of {values.shape[-1]} numbers, and {kind} stores them by 32."
        raise DataError(f"This model can't be stored as {kind}.", why, "Take another type: --type bf16") from error


def _library() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        why = "The package gguf is not installed."
        raise UserError("A GGUF file can't be written.", why, f"Install it: {install_command('gguf')}") from error
    return gguf
