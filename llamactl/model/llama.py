"""A Llama whose parameters have the names of Hugging Face's LlamaForCausalLM.

B batch, T tokens, D width, H query heads, K key/value heads, E head width, F hidden width of SwiGLU, V vocabulary.
Weights are fp32; the caller chooses the precision of the matrix products by autocast or by casting the model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from llamactl.config.schema import ModelConfig
from llamactl.model.attention import Visible, attention, separate_documents
from llamactl.model.cache import KVCache, LayerCache
from llamactl.model.dropout import drop_elements

INIT_STD = 0.02


class RotaryTable(NamedTuple):
    """Cosines and sines of the rotary angles of each position, T x E/2, in fp32."""

    cos: Tensor
    sin: Tensor


def rotary_table(positions: Tensor, config: ModelConfig) -> RotaryTable:
    """Compute the angles of rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    The angles are fp32 in every precision of the model, because bf16 cannot distinguish positions above 256. Scaling divides
    the positions, so that a longer context uses the angles of a shorter one (position interpolation, Chen et al. 2023, arXiv
    2306.15595); Llama 3's way does so for long wavelengths only.
    """
    frequencies = rotary_frequencies(config, positions.device)
    linear = 1.0 if config.rope_original_context else config.rope_scaling
    angles = (positions.float() / linear)[:, None] * frequencies
    return RotaryTable(angles.cos(), angles.sin())


def rotary_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Compute the radians per position of each pair of channels, E/2, with Llama 3's scaling where the config has it."""
    channels = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32)
    frequencies: Tensor = config.rope_theta ** (-channels / config.head_dim)
    if not config.rope_original_context:
        return frequencies
    turns = config.rope_original_context * frequencies / (2 * math.pi)  # within the original context
    kept = ((turns - config.rope_low_freq) / (config.rope_high_freq - config.rope_low_freq)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / config.rope_scaling


def apply_rotary(x: Tensor, by: RotaryTable) -> Tensor:
    """Rotate each pair of channels (i, i + E/2) of x (B H T E) by the angle of its position."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * by.cos - b * by.sin, b * by.cos + a * by.sin], dim=-1).to(x.dtype)


class RMSNorm(nn.Module):
    """Scale each vector to unit root mean square (Zhang & Sennrich 2019, arXiv 1910.07467), in fp32, times a learned gain."""

    def __init__(self, width: int, eps: float) -> None:
        """Initialise the gains of `width` channels to one; `eps` is added to the mean square."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of x (... x D); the result has the shape and dtype of x."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the matrix products with x: that of autocast where it is enabled, else that of x."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype


def project_together(x: Tensor, *layers: nn.Linear) -> Sequence[Tensor]:
    """Apply several linear layers to x (B T D); in mixed precision as one product, whose weights are cast together anyway."""
    if not torch.is_autocast_enabled(x.device.type):
        return [layer(x) for layer in layers]
    biases = tuple(layer.bias for layer in layers if layer.bias is not None)
    weight = torch.cat(tuple(layer.weight for layer in layers))
    together = F.linear(x, weight, torch.cat(biases) if biases else None)
    return torch.split(together, [layer.out_features for layer in layers], dim=-1)


class Attention(nn.Module):
    """Causal self-attention with rotary position embedding; K < H is grouped-query attention."""

    def __init__(self, config: ModelConfig) -> None:
        """Create the four projections, and what Qwen2 (biases) or Qwen3 (norms of queries and keys) add to a Llama."""
        super().__init__()
        self.head_width = config.head_dim
        query, key_value = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, query, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.dim, key_value, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.dim, key_value, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query, config.dim, bias=False)
        # Logits of attention stay bounded, so that a higher rate is stable (Dehghani et al. 2023, arXiv 2302.05442).
        self.q_norm, self.k_norm = (
            RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor, by: RotaryTable, mask: Visible = None, cache: LayerCache | None = None) -> Tensor:
        """Map x (B T D) to the output of attention (B T D).

        With a cache, the keys and values of x are appended to it, and the queries attend to all positions stored in it.
        """
        q, k, v = project_together(x, self.q_proj, self.k_proj, self.v_proj)
        q, k = (apply_rotary(norm(self._heads(each)), by) for norm, each in ((self.q_norm, q), (self.k_norm, k)))
        v = self._heads(v.contiguous())  # a view would keep the product of all three for the backward pass
        if cache is not None:
            k, v = cache.update(k, v)
        return self.o_proj(attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_width).transpose(1, 2)


class SwiGLU(nn.Module):
    """The gated feed-forward layer (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        """Create the three projections, without biases."""
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B T D) to the output of the feed-forward layer (B T D)."""
        gate, up = project_together(x, self.gate_proj, self.up_proj)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """A pre-norm transformer block: attention, then SwiGLU, each with a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        """Create the two sublayers and the norm of each one's input."""
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self,
        x: Tensor,
        by: RotaryTable,
        mask: Visible = None,
        cache: LayerCache | None = None,
        dropout: Tensor | None = None,
    ) -> Tensor:
        """Map the residual stream x (B T D) to the residual stream after this block (B T D).

        `dropout` (B 2 2) says what is left out of the two sublayers' outputs (`drop_elements`).
        """
        x = x + drop_elements(self.self_attn(self.input_layernorm(x), by, mask, cache), dropout, 0)
        return x + drop_elements(self.mlp(self.post_attention_layernorm(x)), dropout, 1)


class Decoder(nn.Module):
    """The model without its output head: embedding, blocks and final norm."""

    def __init__(self, config: ModelConfig) -> None:
        """Create the embedding, the blocks and the final norm."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.activation_checkpointing = False  # the backward pass computes the activations of each block again

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        dropout: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Map token ids (B T), whose positions follow those in the cache, to the final hidden states (B T D).

        `dropout` (B 1+2L 2, L blocks) says what is left out of the embedding and of each sublayer's output. `documents` (N+1,
        int32) are the places in the flattened tokens where documents begin, and the end: they do not see one another.
        """
        new = tokens.shape[1]
        positions = cache.next_positions(new, tokens.device) if cache else torch.arange(new, device=tokens.device)
        mask: Visible = cache.mask(new, tokens.device) if cache else None
        by = rotary_table(positions, self.config)
        x = drop_elements(self.embed_tokens(tokens), dropout, 0)
        if documents is not None:
            # Scores depend on the distance of two positions alone (RoPE), so those of a document need not begin at 0.
            mask = separate_documents(documents, tokens, self.config.head_dim, compute_dtype(x))
        dropped = repeat(None) if dropout is None else torch.split(dropout[:, 1:], 2, dim=1)
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for block, held, out in zip(self.layers, cache.layers if cache else repeat(None), dropped, strict=False):
            run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False) if again else block
            x = run(x, by, mask, held, out)
        return self.norm(x)


class Llama(nn.Module):
    """The language model: maps token ids to the logits of each next token."""

    def __init__(self, config: ModelConfig) -> None:
        """Create the model and initialise its weights from torch's default generator, which the caller seeds.

        On the device "meta" nothing is initialised.
        """
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.tie_weights()
        if not self.lm_head.weight.is_meta:
            with torch.no_grad():
                for parameter, weights in self.initial_weights():
                    parameter.copy_(weights)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Map token ids (B T), whose positions follow those in the cache, to logits (B T V)."""
        return self.lm_head(self.hidden(tokens, cache))

    def hidden(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        dropout: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Map token ids (B T) to the input of the output head (B T D); the arguments are those of `Decoder.forward`."""
        return self.model(tokens, cache, dropout, documents)

    def tie_weights(self) -> None:
        """Share one matrix between output head and embedding if the config says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def initial_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield each parameter with its initial value, one at a time, from torch's CPU generator, which the caller seeds.

        Matrices are normal with standard deviation 0.02, divided by the square root of the number of matrices that write to the
        residual stream for those that do (GPT-2). Gains are ones, biases zeros.
        """
        for name, parameter in self.named_parameters():
            writers = 2 * self.config.n_layers if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            weights = torch.empty(parameter.shape, device="cpu")
            if parameter.ndim == 1:
                yield parameter, weights.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                yield parameter, weights.normal_(std=INIT_STD / math.sqrt(writers))


class _SkipInit(TorchFunctionMode):
    """Leave the tensors of new layers as they are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor that a function of `torch.nn.init` would fill; call any other function."""
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def build_empty(config: ModelConfig) -> Llama:
    """Build a model on the meta device: its weights have shapes, but neither memory nor values."""
    # To draw values there, PyTorch would import its compiler, which takes a second.
    with torch.device("meta"), _SkipInit():
        return Llama(config)
