"""Models that transformers made: all that Llama's family shares is the same here, and others are refused by name."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.hf_config import hf_config, is_edited, read_hf_config
from llamactl.checkpoint.select import locate_checkpoint
from llamactl.config.schema import ModelConfig
from llamactl.errors import DataError
from llamactl.export.gguf import export_gguf
from llamactl.export.huggingface import export_hf
from llamactl.inference.generate import Request, generate_samples
from llamactl.model.decode import Sampler
from llamactl.model.llama import Llama
from llamactl.tokenizer.bpe import load_tokenizer, read_tokenizer
from tests.cli.inline import type_in
from tests.conftest import make_dataset
from tests.serving.conftest import serving
from tests.tokenizer.test_library import end_first, llama3, qwen2, sentencepiece

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10_000.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
MODELS: dict[str, tuple[Callable[..., PretrainedConfig], dict[str, Any], Callable[[list[str]], Any]]] = {
    "llama": (LlamaConfig, {}, llama3),
    "llama-tied": (LlamaConfig, {"tie_word_embeddings": True}, end_first),
    "llama-full-heads": (LlamaConfig, {"num_key_value_heads": 4}, sentencepiece),
    "llama-wide-heads": (LlamaConfig, {"head_dim": 16}, llama3),
    "llama3-rope": (LlamaConfig, {"rope_parameters": LLAMA3_ROPE}, llama3),
    "llama-linear-rope": (LlamaConfig, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}, llama3),
    "mistral": (MistralConfig, {"sliding_window": None}, sentencepiece),
    "mistral-window": (MistralConfig, {"sliding_window": 64}, sentencepiece),
    "qwen2": (Qwen2Config, {}, qwen2),
    "qwen2-tied": (Qwen2Config, {"tie_word_embeddings": True}, qwen2),
    "qwen3": (Qwen3Config, {"head_dim": 8}, qwen2),
    "qwen3-tied": (Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}, qwen2),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Callable[..., Path]:
    """Save a model of a kind with transformers, once, and return its folder."""
    saved: dict[tuple[Any, ...], Path] = {}

    def save(name: str, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
        if (name, dtype, shard) not in saved:
            config, changes, tokenizer = MODELS[name]
            folder = saved[name, dtype, shard] = tmp_path_factory.mktemp(name)
            made = tokenizer(documents[:20])
            torch.manual_seed(0)
            shape = config(**SIZES | {"vocab_size": made.get_vocab_size()} | changes)
            make: Any = AutoModelForCausalLM.from_config
            model = make(shape)
            # Random biases and gains, so that a wrong one is noticed; larger weights, so that greedy text varies.
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
            model.to(dtype).save_pretrained(folder, max_shard_size=shard)
            wrap: Any = PreTrainedTokenizerFast
            wrap(tokenizer_object=made).save_pretrained(folder)
        return saved[name, dtype, shard]

    return save


@pytest.fixture(scope="session")
def older_transformers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the last transformers before 5, which writes other config files, and return the environment that has it."""
    target = tmp_path_factory.mktemp("transformers-4")
    words = ["install", "--quiet", "--no-deps", "--target", str(target)]
    packages = ["transformers==4.57.1", "tokenizers==0.22.1", "huggingface_hub==0.35.3"]
    done = subprocess.run([sys.executable, "-m", "pip", *words, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip install failed: {done.stderr[-200:]}")
    return os.environ | {"PYTHONPATH": str(target)}


# What a script with another transformers does: load the folder that is named, save it anew, and print its logits.
SAVE_ANEW = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
assert transformers.__version__ == "4.57.1"
old, new = sys.argv[1:]
config = transformers.AutoConfig.from_pretrained(old)
model = AutoModelForCausalLM.from_config(config)
torch.manual_seed(0)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
model.save_pretrained(new, max_shard_size="20KB")
PreTrainedTokenizerFast(tokenizer_file=old + "/tokenizer.json").save_pretrained(new)
with torch.inference_mode():
    logits = model.eval()(torch.arange(3, 60)[None]).logits[0, -1]
print(json.dumps(logits.tolist()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama-tied", "mistral", "qwen2", "qwen2-tied", "qwen3", "qwen3-tied"])
def test_folders_of_an_older_transformers_are_read(
    name: str, folders: Callable[..., Path], older_transformers: dict[str, str], tmp_path: Path
) -> None:
    words = [sys.executable, "-c", SAVE_ANEW, str(folders(name)), str(tmp_path / "old")]
    done = subprocess.run(words, env=older_transformers, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, tokenizer, _ = checkpoint_io.load_model(tmp_path / "old", CPU)
    expected = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    with torch.inference_mode():
        found = ours(torch.arange(3, 60)[None])[0, -1]
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)
    assert tokenizer.encode_opening("It is") == AutoTokenizer.from_pretrained(folders(name))("It is")["input_ids"]


@pytest.mark.parametrize("listed", [[], {}, None, 5, "model.safetensors", {"a": 5}, {"a": ["b"]}])
def test_an_index_of_anything_is_refused(listed: object, folders: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders("llama", shard="20KB"), tmp_path / "theirs")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(DataError, match=r"index\.json can't be used"):
        checkpoint_io.load_model(folder, CPU)


@pytest.mark.parametrize("token", ["<|eot_id|>", {"content": "<|eot_id|>", "special": True}])
def test_the_files_of_a_model_say_which_token_ends_a_text(
    token: str | dict[str, object], folders: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders("llama"), tmp_path / "theirs")
    assert checkpoint_io.load_model(folder, CPU)[1].end == AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(
        "<|end_of_text|>"
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": token}))
    for made in (checkpoint_io.load_model(folder, CPU)[1], load_tokenizer(str(folder))):
        assert made.name_of(made.end) == "<|eot_id|>"


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, folders: Callable[..., Path]) -> None:
    folder = folders(name)
    ours, _, state = checkpoint_io.load_model(folder, CPU)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, 500, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(ids).logits
        assert torch.allclose(ours(ids), expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)
    assert state.step == 0
    assert not is_edited(ours.config)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_that_of_transformers(name: str, folders: Callable[..., Path]) -> None:
    """With what each tokenizer puts before a text, as `tokenizer(text)` of transformers has it."""
    folder = folders(name)
    model, tokenizer, _ = checkpoint_io.load_model(folder, CPU)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(folder)
    for prompt in ("The people of", "It is"):
        ids = words(prompt, return_tensors="pt")["input_ids"]
        assert tokenizer.encode_opening(prompt) == ids[0].tolist()
        generated = theirs.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.end, pad_token_id=0)
        request = Request((prompt,), max_new_tokens=12, pick=Sampler(temperature=0))
        (*_, said) = generate_samples(model, tokenizer, request)
        assert said[0].tokens == generated[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", ["llama3-rope", "mistral", "qwen2", "qwen3-tied"])
def test_it_is_served(name: str, folders: Callable[..., Path]) -> None:
    folder = folders(name)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(folder)
    ids = words("The people of", return_tensors="pt")["input_ids"]
    _, tokenizer, _ = checkpoint_io.load_model(folder, CPU)
    generated = theirs.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.end, pad_token_id=0)
    with serving(folder) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        answer = client.completions.create(model=folder.name, prompt="The people of", max_tokens=12, temperature=0)
    said = generated[0, ids.shape[1] :].tolist()
    assert answer.choices[0].text == tokenizer.decode(token for token in said if token != tokenizer.end)


@pytest.mark.parametrize(("dtype", "shard"), [(torch.bfloat16, "5GB"), (torch.float32, "20KB"), (torch.bfloat16, "20KB")])
def test_files_are_one_or_several_in_any_precision(dtype: torch.dtype, shard: str, folders: Callable[..., Path]) -> None:
    folder = folders("qwen3", dtype, shard)
    assert len(list(folder.glob("model-*"))) == (0 if shard == "5GB" else pytest.approx(8, abs=5))
    ours, _, _ = checkpoint_io.load_model(folder, CPU)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-3, rtol=1e-3)
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())


@pytest.mark.parametrize("name", ["llama-tied", "llama3-rope", "mistral", "qwen2", "qwen3-tied"])
def test_an_export_is_the_model_in_the_class_that_holds_it(name: str, folders: Callable[..., Path], tmp_path: Path) -> None:
    folder = folders(name)
    written = export_hf(folder, tmp_path, "f32")
    assert written.name == f"{folder.name}-f32"
    exported, original = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (written, folder))
    expected = {"mistral": "LlamaForCausalLM"}.get(name, type(original).__name__)
    assert type(exported).__name__ == expected
    ids = torch.arange(50)[None]
    with torch.inference_mode():
        logits = original(ids).logits[..., : exported.config.vocab_size]
        assert torch.allclose(exported(ids).logits, logits, atol=1e-4 * logits.abs().max().item(), rtol=1e-4)
    again, _, _ = checkpoint_io.load_model(written, CPU)
    assert again.config.qk_norm == (name == "qwen3-tied")
    assert "converted by llamactl" in (written / "README.md").read_text()


def test_an_export_begins_texts_as_another_file_of_the_model_says(folders: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders("llama-tied"), tmp_path / "model"))
    stored, file = read_tokenizer(folder / "tokenizer.json"), folder / "tokenizer_config.json"
    settings = {"bos_token": stored.name_of(stored.end), "add_bos_token": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    _, ours, _ = checkpoint_io.load_model(folder, CPU)
    written = export_hf(folder, tmp_path, "f32")
    assert AutoTokenizer.from_pretrained(written)("The").input_ids == ours.encode_opening("The")
    assert checkpoint_io.load_model(written, CPU)[1].start == ours.start != ()


@pytest.mark.parametrize(
    ("name", "architecture", "pattern", "begins", "tensors"),
    [
        ("llama3-rope", "llama", "llama-bpe", True, {"rope_freqs.weight"}),
        ("llama-tied", "llama", "gpt-2", False, set()),
        ("mistral", "llama", "default", True, set()),
        ("qwen2", "qwen2", "qwen2", False, {f"blk.1.attn_{each}.bias" for each in "qkv"}),
        ("qwen3", "qwen3", "qwen2", False, {"blk.0.attn_q_norm.weight", "blk.1.attn_k_norm.weight"}),
    ],
)
def test_a_gguf_file_is_the_model_as_llama_cpp_knows_it(
    name: str, architecture: str, pattern: str, begins: bool, tensors: set[str], folders: Callable[..., Path], tmp_path: Path
) -> None:
    import gguf

    file = export_gguf(folders(name), tmp_path, "f32")
    reader: Any = gguf.GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.architecture"] == architecture
    assert fields["tokenizer.ggml.pre"] == pattern
    assert fields["tokenizer.ggml.add_bos_token"] is begins
    assert tensors <= {tensor.name for tensor in reader.tensors}
    _, tokenizer, _ = checkpoint_io.load_model(folders(name), CPU)
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.end
    assert len(fields["tokenizer.ggml.tokens"]) == tokenizer.vocab_size
    if name == "llama3-rope":
        # What each frequency is divided by: nothing for short wavelengths, all of the factor for long ones.
        (factors,) = (tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
        assert 1 <= factors.min() < 4
        assert factors.max() == pytest.approx(4.0)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_every_command_takes_the_folder(name: str, folders: Callable[..., Path], tmp_path: Path, documents: list[str]) -> None:
    folder, text = str(folders(name)), tmp_path / "text.txt"
    text.write_text(documents[0][:2_000])
    sampled = type_in("sample", "The people", "--run", folder, "--max-new-tokens", "4", "--temperature", "0")
    assert sampled.code == 0
    assert "The people" in sampled.out
    evaluated = type_in("eval", str(text), "--run", folder, "--json")
    assert json.loads(evaluated.out)["results"]
    assert type_in("surprise", "The people of the United States", "--run", folder).code == 0
    assert type_in("export", "hf", folder, "--out", str(tmp_path / "out"), "--type", "bf16").code == 0
    assert type_in("verify", folder).code == 0


def test_it_is_trained_further_on_own_text(folders: Callable[..., Path], home: Path, corpus: Path) -> None:
    """Its tokenizer prepares the text, its weights are the start, and transformers loads what comes out."""
    folder = folders("qwen3")
    make_dataset(home / "data" / "own", corpus, tokenizer=str(folder))
    settings = ["--set", "train.tokens_per_step=512", "--set", "train.precision=fp32", "--set", "optim.lr=0.003"]
    words = ["train", "--data", "own", "--init-from", str(folder), "--tokens", "20k", "--run", "further", "--yes", *settings]
    assert type_in(*words).code == 0
    before = type_in("eval", "--data", "own", "--run", str(folder), "--json")
    after = type_in("eval", "--data", "own", "--run", "further", "--json")
    losses = [json.loads(each.out)["results"]["own, val"]["loss"] for each in (before, after)]
    assert losses[1] < losses[0] - 0.5
    path = locate_checkpoint("further")
    assert type(AutoModelForCausalLM.from_pretrained(path)).__name__ == "Qwen3ForCausalLM"
    assert AutoTokenizer.from_pretrained(path)("a")["input_ids"] == AutoTokenizer.from_pretrained(folder)("a")["input_ids"]


CHAT = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"


@pytest.mark.parametrize("where", ["a file of its own", "tokenizer_config.json", "several of them"])
def test_the_chat_template_travels_along(
    where: str, folders: Callable[..., Path], tmp_path: Path, home: Path, corpus: Path
) -> None:
    """From a model to what is trained from it, resumed, exported: transformers makes the same of a conversation."""
    import gguf

    folder = tmp_path / "chatty"
    shutil.copytree(folders("qwen3"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    if where == "a file of its own":
        (folder / "chat_template.jinja").write_text(CHAT)
    else:
        several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHAT}]
        settings["chat_template"] = several if where == "several of them" else CHAT
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    talk = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(talk, tokenize=False)
    assert "[assistant] Hello." in expected
    make_dataset(home / "data" / "own", corpus, tokenizer=str(folder))
    words = ["--data", "own", "--tokens", "2k", "--yes", "--set", "train.tokens_per_step=512"]
    assert type_in("train", *words, "--init-from", str(folder), "--run", "further").code == 0
    shutil.rmtree(folder)
    # Resumed where the first model is gone: the checkpoint has all.
    assert type_in("train", "--resume", "further", "--tokens", "4k", "--yes").code == 0
    path = locate_checkpoint("further")
    written = [path, export_hf(path, tmp_path / "out", "bf16"), export_hf(path, tmp_path / "again", "f32")]
    for each in written:
        assert AutoTokenizer.from_pretrained(each).apply_chat_template(talk, tokenize=False) == expected, each
    reader: Any = gguf.GGUFReader(export_gguf(path, tmp_path, "f32"))
    assert reader.fields["tokenizer.chat_template"].contents() == CHAT


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": (GPT2Config().to_dict(), "'gpt2'"),
    "gemma": ({"model_type": "gemma2"}, "'gemma2'"),
    "window": ({**SIZES, "model_type": "mistral", "vocab_size": 500, "sliding_window": 16}, "sliding_window"),
    "yarn": ({**SIZES, "model_type": "llama", "vocab_size": 500, "rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn'"),
    "biases": ({**SIZES, "model_type": "llama", "vocab_size": 500, "attention_bias": True}, "biases"),
    "activation": ({**SIZES, "model_type": "llama", "vocab_size": 500, "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "quantized": ({**SIZES, "model_type": "llama", "vocab_size": 500, "quantization_config": {}}, "quantization_config"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_computes_something_else_is_refused_by_name(name: str, tmp_path: Path, folders: Callable[..., Path]) -> None:
    folder = tmp_path / name
    shutil.copytree(folders("llama"), folder)
    tree, says = REFUSED[name]
    (folder / "config.json").write_text(json.dumps(tree))
    answer = type_in("sample", "a", "--run", str(folder))
    assert answer.code == 2 or answer.code == 3, answer
    assert says in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("file", "says"),
    [("model.safetensors", "Only safetensors are read"), ("tokenizer.json", "Only fast tokenizers are read")],
)
def test_what_is_missing_is_said(file: str, says: str, tmp_path: Path, folders: Callable[..., Path]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders("llama"), folder)
    (folder / file).unlink()
    with pytest.raises(DataError, match=says):
        checkpoint_io.load_model(folder, CPU)


def test_a_config_with_other_weights_is_refused(tmp_path: Path, folders: Callable[..., Path]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders("qwen3"), folder)
    tree = json.loads((folder / "config.json").read_text()) | {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"k_norm.weight is \[8\] there, and missing"):
        checkpoint_io.load_model(folder, CPU)


def test_a_config_of_few_words_means_what_transformers_takes_it_for(tmp_path: Path) -> None:
    few = {name: SIZES[name] for name in SIZES if name != "num_key_value_heads"} | {"vocab_size": 500, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(few))
    found = read_hf_config(tmp_path)
    assert (found.n_kv_heads, found.head_dim, found.norm_eps, found.rope_theta) == (4, 8, 1e-6, 1e4)
    assert not found.tie_embeddings


def test_a_model_whose_code_was_edited_is_no_llama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shape = ModelConfig(n_layers=1, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, context=32, vocab_size=128)
    before = Llama.__init__

    def edited(self: Llama, config: ModelConfig) -> None:
        before(self, config)
        self.gate = torch.nn.Linear(config.dim, 1)

    monkeypatch.setattr(Llama, "__init__", edited)
    is_edited.cache_clear()
    written = hf_config(shape)
    is_edited.cache_clear()
    assert (written["model_type"], written["architectures"]) == ("llamactl", ["EditedLlama"])
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert read_hf_config(tmp_path) == shape
    assert checkpoint_format.is_foreign(tmp_path)
