"""The step of one token per sequence on a CPU, in C++ (`native/decode.cpp`): it reads the weights at the rate of the memory.

It computes what `llama.py` does and nothing else: a model with other layers, or whose logits differ, is left to PyTorch.
"""

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from llamactl.config.schema import ModelConfig
from llamactl.hardware.device import choose_precision
from llamactl.model.cache import KVCache
from llamactl.model.llama import Attention, Block, Llama, RMSNorm, SwiGLU, rotary_table
from llamactl.model.native_build import load_library
from llamactl.model.quantize import GROUP, Int4Linear, Int8Linear

MOST_SEQUENCES = 16  # beyond, PyTorch's products of matrices are faster
MOST_IN_BF16 = 8  # the same where the processor has instructions for bf16, which only PyTorch uses
FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
TOLERANCE = 0.05  # relative error of logits; PyTorch rounds activations to bf16 where the weights have fewer bits
MOST_SLEPT = 0.2  # of a step's time, beyond which threads are in each other's way
PATIENCE, MOST_PATIENCE = 16, 1024  # steps with fewer threads before more are tried
TRIAL = 3  # tokens by which a model is compared


class Matrix(ctypes.Structure):
    """A matrix of weights in one of the formats, with its scales and bias."""

    _fields_ = [
        ("weights", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64), ("columns", ctypes.c_int64), ("format", ctypes.c_int64),
    ]  # fmt: skip


class Layer(ctypes.Structure):
    """The weights of a block, and its buffers of the cache."""

    _fields_ = [
        *((name, Matrix) for name in ("query", "key", "value", "output", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("attention_norm", "query_norm", "key_norm", "mlp_norm", "keys", "values")),
    ]  # fmt: skip


class Model(ctypes.Structure):
    """All that a step reads."""

    _fields_ = [
        ("embedding", Matrix), ("head", Matrix), ("norm", ctypes.c_void_p), ("layers", ctypes.POINTER(Layer)),
        *((name, ctypes.c_int64) for name in (
            "n_layers", "dim", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "context", "cache_format", "vocab_size"
        )),
        ("epsilon", ctypes.c_float),
    ]  # fmt: skip


class NotNative(Exception):
    """A model that the native step does not compute."""


class _Reader:
    """Describes tensors to C++, and keeps those that had to be copied, and which were read."""

    def __init__(self) -> None:
        """Start with none."""
        self.kept: list[Tensor] = []
        self.read: set[int] = set()

    def pointer(self, tensor: Tensor) -> int:
        """Return the address of a tensor's elements; raises NotNative for one that is not laid out row by row on the CPU."""
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.layout == torch.strided
        if not plain or not tensor.is_contiguous():
            raise NotNative
        self.read.add(id(tensor))
        self.kept.append(tensor)
        return tensor.data_ptr()

    def vector(self, tensor: Tensor | None) -> int | None:
        """Return the address of a vector in fp32, of a copy where it has another format."""
        if tensor is None:
            return None
        self.pointer(tensor)
        return self.pointer(tensor.detach().float())

    def gains(self, norm: nn.Module, eps: float) -> int | None:
        """Return the address of a norm's gains; None for one that does nothing."""
        if type(norm) is nn.Identity:
            return None
        if type(norm) is not RMSNorm or norm.eps != eps:
            raise NotNative
        return self.vector(norm.weight)

    def matrix(self, layer: nn.Module, rows: int, columns: int) -> Matrix:
        """Describe a linear layer or an embedding; raises NotNative for one of another shape or format."""
        weights: Tensor
        scales: Tensor | None = None
        kept, bias = (rows, columns), getattr(layer, "bias", None)
        if type(layer) is nn.Linear or type(layer) is nn.Embedding:
            weights, known = layer.weight, layer.weight.dtype in (torch.float32, torch.bfloat16)
        elif type(layer) is Int8Linear:
            weights, scales = layer.rounded, layer.scales
            known = weights.dtype == torch.int8 and scales.dtype == torch.float32
        elif type(layer) is Int4Linear:
            weights, scales, kept = layer.packed, layer.scales, (rows, -(-columns // GROUP) * GROUP // 2)
            known = weights.dtype == torch.uint8 and scales.dtype == torch.bfloat16
        else:
            raise NotNative
        if not known or weights.shape != kept:
            raise NotNative
        at = None if scales is None else self.pointer(scales)
        return Matrix(self.pointer(weights), at, self.vector(bias), rows, columns, FORMATS[weights.dtype])

    def layer(self, block: nn.Module, config: ModelConfig, keys: Tensor, values: Tensor) -> Layer:
        """Describe a block and its buffers of the cache."""
        if type(block) is not Block or type(block.self_attn) is not Attention or type(block.mlp) is not SwiGLU:
            raise NotNative
        own, mlp, eps = block.self_attn, block.mlp, config.norm_eps
        query, shared = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        matrices = (
            (own.q_proj, query, config.dim), (own.k_proj, shared, config.dim), (own.v_proj, shared, config.dim),
            (own.o_proj, config.dim, query), (mlp.gate_proj, config.ffn_dim, config.dim),
            (mlp.up_proj, config.ffn_dim, config.dim), (mlp.down_proj, config.dim, config.ffn_dim),
        )  # fmt: skip
        norms = (block.input_layernorm, own.q_norm, own.k_norm, block.post_attention_layernorm)
        return Layer(
            *(self.matrix(*each) for each in matrices),
            *(self.gains(norm, eps) for norm in norms),
            self.pointer(keys),
            self.pointer(values),
        )

    def model(self, model: Llama, cache: KVCache, vocab_size: int) -> Model:
        """Describe a model and a cache; raises NotNative unless each tensor of the model has its place."""
        config, dtype = model.config, cache.layers[0].keys.dtype
        pairs = zip(model.model.layers, cache.layers, strict=True)
        layers = [self.layer(block, config, held.keys, held.values) for block, held in pairs]
        outer = (model.model.embed_tokens, model.lm_head)
        embedding, head = (self.matrix(each, config.vocab_size, config.dim) for each in outer)
        norm = self.gains(model.model.norm, config.norm_eps)
        if any(id(tensor) not in self.read for tensor in (*model.parameters(), *model.buffers())):
            raise NotNative
        sizes = (
            config.n_layers,
            config.dim,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim,
            config.ffn_dim,
            config.context,
        )
        rows = (Layer * len(layers))(*layers)
        return Model(embedding, head, norm, rows, *sizes, FORMATS[dtype], vocab_size, config.norm_eps)


class _Threads:
    """The number of threads of a step: fewer for a while where they wait for one another, as beside busy programs."""

    def __init__(self) -> None:
        """Start with all."""
        self.count, self._quiet, self._patience = torch.get_num_threads(), 0, PATIENCE

    def report(self, slept: float, took: float) -> None:
        """Take account of the seconds that a step's first thread slept, and of all its seconds."""
        self._quiet += 1
        if slept > MOST_SLEPT * took and self.count > 1:
            # It takes longer each time to try more again: a trial beside busy programs costs several steps.
            self._patience = min(2 * self._patience, MOST_PATIENCE) if self._quiet <= PATIENCE else PATIENCE
            self.count, self._quiet = max(1, self.count // 2), 0
        elif self._quiet >= self._patience and self.count < torch.get_num_threads():
            self.count, self._quiet = min(2 * self.count, torch.get_num_threads()), 0


class NativeStep:
    """The step of one token per sequence for a model and a cache."""

    def __init__(self, model: Llama, cache: KVCache, vocab_size: int) -> None:
        """Describe the model to C++; raises NotNative for one that it does not compute."""
        functions = load_library().functions
        if functions is None:
            raise NotNative
        self._step, self._threads = functions.decode_step, _Threads()
        self._step.restype = ctypes.c_double
        self._reader = _Reader()
        self._model = self._reader.model(model, cache, vocab_size)
        self._context = model.config.context
        self._slots = cache.layers[0].keys.shape[0]
        self._logits = torch.empty(self._slots, model.config.vocab_size)
        self._totals = torch.empty(self._slots, 1)
        self._rotary = rotary_table(torch.arange(self._context), model.config)

    def __call__(self, tokens: Tensor, positions: Sequence[int], rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits of the next tokens, R V, and the logarithms of the sums of their exponentials, R 1.

        `tokens` (R 1) are at `positions` of some rows of the cache, all without `rows`; their keys and values are stored there.
        The next call changes the logits.
        """
        rows = range(self._slots) if rows is None else rows
        tokens, slots, places = tokens.contiguous(), torch.tensor(rows), torch.tensor(positions)
        if max(positions) >= self._context:
            raise ValueError("the cache is full")  # C++ would write behind it
        cos, sin = (each[places] for each in self._rotary)
        pointers = (ctypes.c_void_p(each.data_ptr()) for each in (tokens, slots, places, cos, sin, self._logits, self._totals))
        started = time.perf_counter()
        slept = self._step(
            ctypes.byref(self._model), ctypes.c_int64(len(slots)), *pointers, ctypes.c_int32(self._threads.count)
        )
        self._threads.report(slept, time.perf_counter() - started)
        return self._logits[: len(slots)], self._totals[: len(slots)]

    @contextmanager
    def pause_threads(self) -> Iterator[None]:
        """Let PyTorch use one thread for what it does with the logits while the threads of a step were in each other's way."""
        usual = torch.get_num_threads()
        crowded = self._threads.count < usual
        if crowded:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if crowded:
                torch.set_num_threads(usual)


_compared: "WeakKeyDictionary[Llama, tuple[object, bool]]" = WeakKeyDictionary()


@torch.inference_mode()
def runs_natively(model: Llama) -> bool:
    """Check whether the native step computes a model: on the CPU, of the known layers, with the logits that PyTorch gets.

    The first check of a model compiles the library where there is none, and takes a few steps.
    """
    if model.model.embed_tokens.weight.device.type != "cpu" or torch.distributed.is_initialized():
        return False
    known = tuple(map(type, model.modules())), model.model.embed_tokens.weight.dtype
    found = _compared.get(model)
    if found is None or found[0] != known:
        found = _compared[model] = known, _compare(model)
    return found[1]


def _compare(model: Llama) -> bool:
    """Compare the logits of some tokens with PyTorch's."""
    weight, vocab_size = model.model.embed_tokens.weight, model.config.vocab_size
    try:
        step = NativeStep(model, KVCache(model.config, 1, weight.device, weight.dtype), vocab_size)
    except NotNative:
        return False
    tokens = torch.arange(min(TRIAL, model.config.context)) * 7 % vocab_size
    # All tokens at once: PyTorch takes as long for one, which is much of the time to the first word of a large model.
    for position, expected in enumerate(model(tokens[None])[0].float()):
        found = step(tokens[None, position : position + 1], [position])[0][0]
        # Not >: of NaN neither holds, and what has no numbers is PyTorch's to report.
        if not torch.linalg.norm(found - expected) <= TOLERANCE * torch.linalg.norm(expected):
            return False
    return True


def native_step(model: Llama, cache: KVCache, vocab_size: int) -> NativeStep | None:
    """Return the native step where it computes the model; else None."""
    return NativeStep(model, cache, vocab_size) if runs_natively(model) else None


def most_sequences(cache: KVCache) -> int:
    """Return up to how many sequences at once the native step is faster than PyTorch's products of matrices."""
    keys = cache.layers[0].keys
    fast = keys.dtype == torch.bfloat16 and choose_precision("auto", keys.device).dtype == torch.bfloat16
    return MOST_IN_BF16 if fast else MOST_SEQUENCES
