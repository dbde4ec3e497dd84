"""The native step computes what the model does, in each format of the weights, and gives way to PyTorch where it is missing."""

import copy
import ctypes
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llamactl.config.schema import ModelConfig
from llamactl.model import native_build, native_step
from llamactl.model.cache import KVCache
from llamactl.model.convert import FORMATS, PackedLinear, convert_weights
from llamactl.model.decode import Sampler, decode_tokens
from llamactl.model.llama import Llama, SwiGLU
from llamactl.model.native_build import Library, load_library
from llamactl.model.native_step import MOST_SEQUENCES, NativeStep, runs_natively
from llamactl.model.quantize import Int4Linear, Int8Linear
from llamactl.model.row_steps import RowSteps

needs_library = pytest.mark.skipif(load_library().functions is None, reason=load_library().notice)
SHAPE = ModelConfig(n_layers=2, dim=48, n_heads=6, n_kv_heads=2, head_dim=8, ffn_dim=80, context=40, vocab_size=131)
SHAPES: dict[str, dict[str, Any]] = {
    "usual": {},
    "one head": {"n_heads": 1, "n_kv_heads": 1, "head_dim": 128, "ffn_dim": 130},
    "odd widths": {"dim": 37, "n_heads": 3, "n_kv_heads": 1, "head_dim": 6, "ffn_dim": 65, "vocab_size": 77},
    "wide": {"dim": 200, "n_heads": 4, "n_kv_heads": 4, "head_dim": 66, "ffn_dim": 300, "vocab_size": 1030},
    "tied": {"tie_embeddings": True},
    "Qwen2": {"qkv_bias": True, "tie_embeddings": True},
    "Qwen3": {"qk_norm": True, "norm_eps": 1e-3},
    "positions divided": {"rope_scaling": 3.5, "rope_theta": 500.0},
    "Llama 3": {"rope_scaling": 8.0, "rope_original_context": 16, "rope_theta": 5000.0, "head_dim": 32},
    "long": {"context": 700},
    "tiny": {
        "n_layers": 1,
        "dim": 1,
        "n_heads": 1,
        "n_kv_heads": 1,
        "head_dim": 2,
        "ffn_dim": 1,
        "context": 3,
        "vocab_size": 2,
    },
}


def made(**shape: Any) -> Llama:
    """A model whose parameters are all random, biases and gains too, and whose logits are as large as after training."""
    model = Llama(SHAPE.model_copy(update=shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    return model


def in_fp32(model: Llama) -> Llama:
    """The same model with its weights, as they were rounded, in fp32: what PyTorch multiplies without further rounding."""
    model = copy.deepcopy(model).float()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Int8Linear | Int4Linear):
                rounded = child.dequantize()
                linear = nn.Linear(rounded.shape[1], rounded.shape[0], bias=child.bias is not None)
                linear.weight, linear.bias = nn.Parameter(rounded), child.bias
                setattr(module, name, linear)
    return model


@torch.inference_mode()
def compare(model: Llama, reference: Llama, batch: int, before: int, steps: int) -> float:
    """Return the largest error of the logits over some steps after a prompt, relative to their spread."""
    config, dtype = model.config, model.model.embed_tokens.weight.dtype
    vocab_size = config.vocab_size - 1
    ids = torch.randint(0, vocab_size, (batch, before + steps))
    usual, own = KVCache(config, batch, ids.device, torch.float32), KVCache(config, batch, ids.device, dtype)
    if before:
        reference(ids[:, :before], usual)
        for one, other in zip(usual.layers, own.layers, strict=True):
            one.keys.copy_(other.keys.copy_(one.keys))  # as both then hold them, rounded to the cache's format
            one.values.copy_(other.values.copy_(one.values))
        own.length = before
    step, worst = NativeStep(model, own, vocab_size), 0.0
    for place in range(before, before + steps):
        expected = reference(ids[:, place : place + 1], usual)[:, -1]
        found, total = step(ids[:, place : place + 1], [place] * batch)
        assert found[:, vocab_size:].eq(-torch.inf).all()
        expected, found = expected[:, :vocab_size], found[:, :vocab_size]
        assert torch.allclose(total, found.logsumexp(-1, keepdim=True), rtol=1e-5, atol=1e-5)
        worst = max(worst, ((found - expected).abs().max() / max(1e-3, expected.std(correction=0).item())).item())
        for one, other in zip(usual.layers, own.layers, strict=True):
            other.keys.copy_(one.keys), other.values.copy_(one.values)  # errors do not add up over steps
            one.keys.copy_(other.keys), one.values.copy_(other.values)
    return worst


@needs_library
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_f32_is_the_reference(shape: dict[str, Any], batch: int) -> None:
    model = made(**shape)
    context = model.config.context
    before = random.Random(batch).randrange(context - 2)
    assert compare(model, model, batch, before, 3 if context > 3 else 1) < 2e-5


@needs_library
@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fewer_bits_are_the_products_of_the_rounded_weights(shape: dict[str, Any], kind: str) -> None:
    model = convert_weights(made(**shape), kind)
    # Only what is stored in a cache of bf16 is rounded; 0.002 is a quarter of a step of that.
    assert compare(model, in_fp32(model), 3, 0, 2) < (0.03 if kind == "bf16" else 2e-5)


@needs_library
def test_random_shapes() -> None:
    draw = random.Random(7)
    for _ in range(25):
        heads, shared = draw.randint(1, 4), draw.randint(1, 4)
        shape = {
            "n_layers": draw.randint(1, 3), "dim": draw.randint(1, 150), "n_heads": heads * shared, "n_kv_heads": heads,
            "head_dim": 2 * draw.randint(1, 40), "ffn_dim": draw.randint(1, 200), "context": draw.randint(4, 300),
            "vocab_size": draw.randint(2, 400), "tie_embeddings": draw.random() < 0.5, "qk_norm": draw.random() < 0.3,
        }  # fmt: skip
        model = convert_weights(made(**shape), draw.choice(["f32", "int8", "int4"]))
        batch, before = draw.randint(1, 16), draw.randrange(model.config.context - 2)
        assert compare(model, in_fp32(model), batch, before, 2) < 5e-5, shape


@needs_library
@pytest.mark.parametrize("kind", FORMATS)
def test_neither_threads_nor_other_sequences_change_a_bit(kind: str) -> None:
    model = convert_weights(made(dim=130, n_heads=5, n_kv_heads=5, ffn_dim=500, vocab_size=3000), kind)
    ids = torch.randint(0, 3000, (16, 6))

    def logits(rows: slice, threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        ids_of = ids[rows]
        step = NativeStep(model, KVCache(model.config, len(ids_of), ids.device, model.model.embed_tokens.weight.dtype), 3000)
        return torch.stack([step(ids_of[:, place : place + 1], [place] * len(ids_of))[0].clone() for place in range(6)])

    together = logits(slice(0, 16), 1)
    for threads in (1, 2, 3, 7):
        assert torch.equal(logits(slice(0, 16), threads), together)
        assert torch.equal(logits(slice(3, 4), threads), together[:, 3:4])
        assert torch.equal(logits(slice(5, 11), threads), together[:, 5:11])


def decode(model: Llama, prompts: list[list[int]], new: int) -> list[list[int]]:
    steps = decode_tokens(model, prompts, model.config.vocab_size, Sampler(0), range(len(prompts)))
    found: list[list[int]] = torch.stack([step.tokens for step in islice(steps, new)], dim=1).tolist()
    return found


@needs_library
def test_greedy_text_is_that_of_hugging_face_on_50_prompts() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from llamactl.checkpoint.hf_config import hf_config

    model = made(context=64, vocab_size=300)
    other: Any = LlamaForCausalLM(LlamaConfig(**hf_config(model.config)))
    other.eval()
    other.load_state_dict(model.state_dict())
    other.generation_config.eos_token_id = None
    assert runs_natively(model)
    for number in range(50):
        prompt = torch.randint(0, 300, (1, 1 + number % 20))
        more: Any = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
        expected = other.generate(prompt, attention_mask=torch.ones_like(prompt), **more)[0, prompt.shape[1] :].tolist()
        assert decode(model, prompt.tolist(), 24) == [expected]


@needs_library
def test_decoding_takes_it_and_goes_on_past_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    model, usual = made(), NativeStep.__call__
    calls: list[int] = []

    def counted(self: NativeStep, tokens: torch.Tensor, *places: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(tokens))
        return usual(self, tokens, *places)

    monkeypatch.setattr(NativeStep, "__call__", counted)
    prompts = torch.randint(0, 131, (2, 10)).tolist()
    found = decode(model, prompts, 60)
    assert calls.count(2) > 50
    monkeypatch.setattr("llamactl.model.row_steps.native_step", lambda *_: None)
    assert found == decode(model, prompts, 60)


@needs_library
def test_many_sequences_are_left_to_pytorch() -> None:
    model, many = made(), MOST_SEQUENCES + 1
    steps = RowSteps(model, KVCache(model.config, many, torch.device("cpu"), torch.float32), 131)
    tokens = torch.randint(0, 131, (many, 1))
    for count in (1, many, 2):
        steps(tokens[:count], range(count), [3] * many)
        assert (steps._native is None) == (count == many)


class Scaled(nn.Linear):
    """A layer that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@needs_library
def test_another_architecture_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs_natively(made())
    layer, added, nan = made(), made(), made()
    layer.get_submodule("model.layers.1.mlp").register_module("up_proj", Scaled(48, 80, bias=False))
    # It does nothing yet, as many additions when training begins.
    added.get_submodule("model.layers.0.mlp").register_parameter("gate", nn.Parameter(torch.zeros(1)))
    with torch.no_grad():
        nan.model.norm.weight.fill_(torch.nan)
    assert not runs_natively(layer)
    assert not runs_natively(added)
    assert not runs_natively(nan)
    # The file model/llama.py itself was edited.
    usual = SwiGLU.forward
    monkeypatch.setattr(SwiGLU, "forward", lambda self, x: usual(self, x).relu())
    edited = made()
    assert not runs_natively(edited)
    assert decode(edited, [[1, 2]], 3)


@needs_library
def test_other_formats_and_shapes_are_left_to_pytorch() -> None:
    assert not runs_natively(made().half())
    assert not runs_natively(convert_weights(made(), "int8").bfloat16())  # its scales, too
    wider = made()
    wider.get_submodule("model.layers.0.mlp").register_module("up_proj", nn.Linear(48, 81, bias=False))
    assert not runs_natively(wider)


@needs_library
def test_a_full_cache_is_refused() -> None:
    model = made()
    cache = KVCache(model.config, 1, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="full"):
        NativeStep(model, cache, 131)(torch.zeros(1, 1, dtype=torch.int64), [model.config.context])


@needs_library
def test_weights_stay_where_they_are() -> None:
    model = made()
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert {name: tensor.data_ptr() for name, tensor in convert_weights(model, "f32").state_dict().items()} == before


def test_threads_wait_for_each_other_only_a_while() -> None:
    torch.set_num_threads(4)
    threads = native_step._Threads()
    counts = []
    for number in range(200):
        threads.report(0.5 if threads.count > 1 and number < 60 else 0.0, 1.0)
        counts.append(threads.count)
    assert counts[:2] == [2, 1]
    assert counts[2:60].count(1) > 50
    assert counts[-1] == 4


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The cache folder of a process that has no library yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_library.cache_clear()
    yield tmp_path / "cache" / "llamactl"
    load_library.cache_clear()


def no_library(said: str) -> None:
    library = load_library()
    assert library.functions is None
    assert said in library.notice
    assert "\n" not in library.notice
    model = convert_weights(made(), "f32")
    assert not runs_natively(model)
    assert isinstance(model.lm_head, PackedLinear | nn.Linear)
    assert len(decode(model, [[1, 2, 3]], 4)[0]) == 4


def test_no_compiler(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native_build, "COMPILERS", ())
    no_library("apt install g++")


@pytest.mark.parametrize(("command", "said"), [("no-such-compiler", "no-such-compiler (CXX) is missing"), ("false", "failed")])
def test_a_compiler_that_fails(machine: Path, monkeypatch: pytest.MonkeyPatch, command: str, said: str) -> None:
    monkeypatch.setenv("CXX", command)
    no_library(said)


def test_a_compiler_with_half_a_quote(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", 'g++ "')
    no_library("CXX is no command")


def test_no_source(machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "decode.cpp").write_text("int main( {")
    monkeypatch.setattr(native_build, "SOURCE", tmp_path / "decode.cpp")
    no_library("failed: " if shutil.which("c++") else "compiler")


@needs_library
def test_a_compiler_without_openmp_has_threads_of_its_own(
    machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = made()
    expected = decode(model, [[1, 2, 3]], 20)
    script = tmp_path / "apple"
    usual = shlex.quote(str(shutil.which(native_build.find_compiler()[0])))
    script.write_text(f'#!/bin/sh\ncase " $* " in *" -fopenmp "*) exit 1; esac\nexec {usual} "$@"\n')
    script.chmod(0o700)
    monkeypatch.setenv("CXX", str(script))
    load_library.cache_clear()
    assert load_library().functions is not None, load_library().notice
    assert decode(copy.deepcopy(model), [[1, 2, 3]], 20) == expected
    newest = max(machine.glob("*.so"), key=lambda path: path.stat().st_mtime_ns)
    assert b"omp_get_thread_num" not in newest.read_bytes()


@needs_library
def test_a_cache_that_can_not_be_written(machine: Path) -> None:
    machine.parent.write_text("a file where the folder should be")
    library = load_library()
    assert library.functions is not None
    assert str(machine) in library.notice
    assert runs_natively(made())


@needs_library
@pytest.mark.parametrize("where", ["temporary", "cache"])
def test_a_folder_from_which_nothing_may_be_executed(machine: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    open_library = ctypes.CDLL

    def refuse(path: str) -> ctypes.CDLL:
        if (machine in Path(path).parents) == (where == "cache"):
            raise OSError(f"{path}: failed to map segment from shared object")
        return open_library(path)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    for again in (False, True):
        load_library.cache_clear()
        assert load_library().functions is not None
        assert ("compiled again each time" in load_library().notice) == (again and where == "cache")


@needs_library
def test_one_library_for_each_processor_and_a_damaged_one_is_made_again(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_times() -> int:
        load_library.cache_clear()
        before = len(runs)
        assert load_library() == Library(load_library().functions)
        assert load_library().functions is not None
        return len(runs) - before

    runs: list[list[str]] = []
    usual = native_build._run

    def counted(words: list[str]) -> str:
        if "-o" in words:
            runs.append(words)
        return usual(words)

    monkeypatch.setattr(native_build, "_run", counted)
    assert [compile_times(), compile_times()] == [1, 0]
    (library,) = machine.glob("*.so")
    library.write_bytes(library.read_bytes()[:5000])  # loading this one would end the process
    assert [compile_times(), compile_times()] == [1, 0]
    monkeypatch.setattr(native_build, "CPUINFO", machine / "cpuinfo")  # a home folder that another machine shares
    (machine / "cpuinfo").write_text("model name : another\nflags : sse\n")
    assert [compile_times(), compile_times()] == [1, 0]
    assert len(list(machine.glob("*.so"))) == 2
    assert not list(machine.glob(".*"))


@needs_library
def test_what_no_machine_used_for_months_is_removed(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others still load stays, as does what is not a library; one that vanishes while it is looked at is no error."""
    machine.mkdir(parents=True)
    months_ago = time.time() - native_build.UNUSED - 60
    for name in ("decode-old.so", "decode-old.sha256", ".decode-old.so-12", "decode-kept.so", "decode-kept.sha256", "vocab"):
        (machine / name).write_text("")
        os.utime(machine / name, (months_ago, months_ago + 3600 * ("kept" in name)))
    assert load_library().functions is not None
    (own,) = (path for path in machine.glob("*.so") if path.stem != "decode-kept")
    assert {path.name for path in machine.iterdir()} == {
        "decode-kept.so", "decode-kept.sha256", "vocab", own.name, own.with_suffix(".sha256").name,
    }  # fmt: skip
    for file in machine.iterdir():
        os.utime(file, (months_ago, months_ago))
    load_library.cache_clear()
    assert load_library().functions is not None
    native_build.remove_unused(machine)
    assert {path.name for path in machine.iterdir()} == {"vocab", own.name, own.with_suffix(".sha256").name}
    monkeypatch.setattr(Path, "glob", lambda *_: [machine / "decode-gone.so"])
    native_build.remove_unused(machine)


SANITIZED = """
import sys
sys.path.insert(0, ".")
import torch
torch.manual_seed(0)
from tests.model import test_native as t
assert t.load_library().functions is not None, t.load_library().notice
torch.set_num_threads(3)
for name, shape in t.SHAPES.items():
    for kind in t.FORMATS:
        model = t.convert_weights(t.made(**shape), kind)
        for batch in (1, 3, 16):
            worst = t.compare(model, t.in_fp32(model), batch, 0, 2)
            assert worst < 0.1, (name, kind, batch, worst)
"""


@needs_library
@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("g++")  # Clang's runtimes have other names
    if compiler is None:
        pytest.skip("no g++")
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip("the compiler has no sanitizers")
    variables = {
        "CXX": f"{compiler} -g -fsanitize=address,undefined -fno-sanitize-recover=undefined",
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "XDG_CACHE_HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run([sys.executable, "-c", SANITIZED], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
