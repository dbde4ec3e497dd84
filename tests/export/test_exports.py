"""What other programs read is the model: tensor by tensor, token by token, and in Hugging Face's hands."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint import safetensors_io
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import Config, ModelConfig
from llamactl.errors import DataError
from llamactl.export import gguf as export_gguf
from llamactl.export import huggingface as export_huggingface
from llamactl.model.llama import Block, Llama
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer import bpe
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.plain_bpe import END_OF_TEXT
from llamactl.tokenizer.roles import add_roles

SHAPE = ModelConfig(n_layers=2, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, context=64, vocab_size=384)


def save(config: ModelConfig, tokenizer: Tokenizer, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    model = Llama(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    run = RunDir.from_name("mine")
    run.start(Config(), {"command": "llamactl train --tokens 9"})
    state = checkpoint_format.State(step=7, tokens=9, seconds=3600.0, validation_loss=4.5)
    checkpoint_io.save_checkpoint(run.checkpoint(7), take_snapshot(model, []), config, tokenizer, state)
    return run.checkpoint(7)


@pytest.fixture(params=[{}, {"tie_embeddings": True}, {"rope_scaling": 4.0}], ids=["plain", "tied", "scaled"])
def saved(request: pytest.FixtureRequest, home: Path, documents: list[str]) -> Path:
    return save(SHAPE.model_copy(update=request.param), bpe.train_bpe(iter(documents), 300))


def field(reader: Any, name: str) -> Any:
    return reader.get_field(name).contents()


def test_a_model_of_conversations_talks_in_ollama_and_llama_cpp(home: Path, documents: list[str], tmp_path: Path) -> None:
    tokenizer = add_roles(bpe.train_bpe(iter(documents), 300))
    path = save(SHAPE.model_copy(update={"vocab_size": 384}), tokenizer)
    file = export_gguf.export_gguf(path, tmp_path / "out", "f32")
    reader = gguf.GGUFReader(file)
    assert field(reader, "tokenizer.chat_template") == tokenizer.chat_template
    assert field(reader, "tokenizer.ggml.eot_token_id") == tokenizer.controls["<|end|>"]
    modelfile = export_gguf.modelfile_path(file).read_text()
    assert "<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>" in modelfile
    assert 'PARAMETER stop "<|end|>"' in modelfile
    tokenizer.chat_template = "{{ messages }}"  # of another model: Ollama knows it, or not
    assert "TEMPLATE" not in export_gguf.describe_for_ollama("x.gguf", tokenizer)


@pytest.mark.parametrize("kind", export_gguf.TYPES)
def test_a_gguf_file_holds_the_model(saved: Path, kind: str, tmp_path: Path) -> None:
    model, tokenizer, _ = checkpoint_io.load_model(saved, torch.device("cpu"))
    file = export_gguf.export_gguf(saved, tmp_path / "out", kind)
    assert file.name == f"mine-step7-{kind}.gguf"
    assert f"FROM ./{file.name}" in (file.parent / f"mine-step7-{kind}.Modelfile").read_text()
    reader = gguf.GGUFReader(file)
    assert field(reader, "general.architecture") == "llama"
    expected = {
        "context_length": 64, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96, "attention.head_count": 4,
        "attention.head_count_kv": 2, "rope.freq_base": 10_000.0, "rope.dimension_count": 16, "vocab_size": 300,
    }  # fmt: skip
    assert {name: field(reader, f"llama.{name}") for name in expected} == expected
    if model.config.rope_scaling > 1:
        assert field(reader, "llama.rope.scaling.type") == "linear"
        assert field(reader, "llama.rope.scaling.factor") == 4.0
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert tokens[-1] == END_OF_TEXT
    assert len(tokens) == 300
    assert field(reader, "tokenizer.ggml.pre") == "gpt-2"
    assert field(reader, "tokenizer.ggml.bos_token_id") == tokenizer.end == 299
    names = {tensor.name for tensor in reader.tensors}
    assert ("output.weight" in names) == (not model.config.tie_embeddings)
    assert len(names) == len(list(export_gguf.iter_gguf_tensors(model, 300)))


def test_turned_rows_give_the_same_scores(saved: Path) -> None:
    """llama.cpp's rotation of neighbours, on our turned rows, against our rotation of halves."""
    from llamactl.model.llama import apply_rotary, rotary_table

    model, _, _ = checkpoint_io.load_model(saved, torch.device("cpu"))
    block = model.model.layers[0]
    assert isinstance(block, Block)
    x, by = torch.randn(1, 5, 64), rotary_table(torch.arange(5), ModelConfig(head_dim=16))

    def neighbours(values: torch.Tensor) -> torch.Tensor:
        even, odd = values[..., 0::2], values[..., 1::2]
        turned = torch.stack([even * by.cos - odd * by.sin, odd * by.cos + even * by.sin], dim=-1)
        return turned.flatten(-2)

    def heads(weight: torch.Tensor, number: int) -> torch.Tensor:
        return (x @ weight.mT).view(1, 5, number, 16).transpose(1, 2)

    q, k = block.self_attn.q_proj.weight, block.self_attn.k_proj.weight
    usual = apply_rotary(heads(q, 4), by)[:, :2] @ apply_rotary(heads(k, 2), by).mT
    theirs = (
        neighbours(heads(export_gguf.interleave_heads(q, 4), 4))[:, :2]
        @ neighbours(heads(export_gguf.interleave_heads(k, 2), 2)).mT
    )
    assert torch.allclose(usual, theirs, atol=1e-4)
    wrong = neighbours(heads(q, 4))[:, :2] @ neighbours(heads(k, 2)).mT
    assert not torch.allclose(usual, wrong, atol=1e-2)


def test_a_file_that_is_not_the_model_is_refused(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = export_gguf._encoded

    def spoiled(library: Any, values: np.ndarray, kind: str, name: str) -> Any:
        return encoded(library, values * (1.1 if name == "blk.1.attn_v.weight" else 1.0), kind, name)

    monkeypatch.setattr(export_gguf, "_encoded", spoiled)
    with pytest.raises(DataError, match=r"blk\.1\.attn_v\.weight"):
        export_gguf.export_gguf(saved, tmp_path / "out", "f32")


def test_rows_that_do_not_fit_a_type_are_refused(home: Path, tmp_path: Path, documents: list[str]) -> None:
    path = save(SHAPE.model_copy(update={"ffn_dim": 90}), bpe.train_bpe(iter(documents), 300))
    with pytest.raises(DataError, match="q8_0") as caught:
        export_gguf.export_gguf(path, tmp_path / "out", "q8_0")
    assert "--type bf16" in caught.value.fix


@pytest.mark.parametrize("kind", export_huggingface.DTYPES)
def test_a_release_is_the_model_in_hugging_faces_hands(saved: Path, kind: str, tmp_path: Path) -> None:
    model, tokenizer, _ = checkpoint_io.load_model(saved, torch.device("cpu"))
    (saved.parents[1] / "loss.png").write_bytes(b"\x89PNG")
    folder = export_huggingface.export_hf(saved, tmp_path / "out", kind)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, 300, (2, 40))
    rounded = Llama(model.config)
    rounded.load_state_dict({name: t.to(export_huggingface.DTYPES[kind]).float() for name, t in model.state_dict().items()})
    with torch.inference_mode():
        assert torch.allclose(theirs(ids).logits, rounded(ids)[..., :300], atol=1e-4)
    assert theirs.config.vocab_size == 300
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(export_huggingface.DTYPES[kind]).removeprefix(
        "torch."
    )
    assert AutoTokenizer.from_pretrained(folder).encode("The people") == tokenizer.encode_opening("The people")
    card = (folder / "README.md").read_text()
    for words in ("llamactl train --tokens 9", "4.5000 nats", "loss.png", "300 ids", f"| stored as | {kind} |"):
        assert words in card
    if kind == "bf16":
        assert (folder / "model.safetensors").stat().st_size < 0.55 * (saved / "model.safetensors").stat().st_size


def test_a_release_with_other_logits_is_refused(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = safetensors_io.serialize_tensors
    monkeypatch.setattr(
        safetensors_io, "serialize_tensors", lambda each: parts({name: tensor + 0.01 for name, tensor in each.items()})
    )
    with pytest.raises(DataError, match="its logits differ"):
        export_huggingface.export_hf(saved, tmp_path / "out", "f32")
    assert not list((tmp_path / "out").glob("mine*"))
