"""A Llama, read top to bottom, with the names that Hugging Face's LlamaForCausalLM gives its weights.

B batch, T tokens, D width, H query heads, K key/value heads, E head width, F hidden width of SwiGLU, V vocabulary.
Weights are fp32; whoever calls the model chooses, by autocast or a cast, what the products are computed in.
"""

import math
from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llamactl.config import ModelConfig
from llamactl.model.attention import attend
from llamactl.model.cache import KVCache, LayerCache

INIT_STD = 0.02


class Rotation(NamedTuple):
    """Cosines and sines of each position's angles, T x E/2, in fp32."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, head_width: int, theta: float, scaling: float = 1.0) -> Rotation:
    """The angles of rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    fp32 whatever the model computes in: bf16 can't tell positions above 256 apart. `scaling` divides the positions, so
    that a longer context has the angles of a shorter one (position interpolation, Chen et al. 2023, arXiv 2306.15595).
    """
    channels = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32)
    angles = (positions.float() / scaling)[:, None] * theta ** (-channels / head_width)
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn each pair (channel i, channel i + E/2) of x (B H T E) by the angle of its position."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * by.cos - b * by.sin, b * by.cos + a * by.sin], dim=-1).to(x.dtype)


class RMSNorm(nn.Module):
    """Scale each vector to unit root mean square (Zhang & Sennrich 2019, arXiv 1910.07467), in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        """Gains start at one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """... x D to ... x D."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; K < H shares keys and values among query heads."""

    def __init__(self, config: ModelConfig) -> None:
        """Four projections without biases."""
        super().__init__()
        self.head_width = config.head_width
        query, key_value = config.heads * config.head_width, config.kv_heads * config.head_width
        self.q_proj = nn.Linear(config.width, query, bias=False)
        self.k_proj = nn.Linear(config.width, key_value, bias=False)
        self.v_proj = nn.Linear(config.width, key_value, bias=False)
        self.o_proj = nn.Linear(query, config.width, bias=False)

    def forward(self, x: Tensor, by: Rotation, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """B T D to B T D; with a cache, earlier positions are read from it and these are added."""
        q, k, v = (self._heads(projection(x)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, by), rotate(k, by)
        if cache is not None:
            k, v = cache.update(k, v)
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_width).transpose(1, 2)


class SwiGLU(nn.Module):
    """The gated feed-forward layer (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        """Three projections without biases."""
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """B T D to B T D."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then SwiGLU, each reading a normed copy of the raw residual stream and adding to it."""

    def __init__(self, config: ModelConfig) -> None:
        """Norms stand before the layers (pre-norm)."""
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, by: Rotation, mask: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """B T D to B T D."""
        x = x + self.self_attn(self.input_layernorm(x), by, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Everything below the head."""

    def __init__(self, config: ModelConfig) -> None:
        """Embedding, blocks, final norm."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.recompute = False  # whether blocks forget their activations and work them out again for their gradients

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Tokens B T, which stand after those in the cache, to the final hidden states B T D."""
        start, new = cache.length if cache else 0, tokens.shape[1]
        positions = torch.arange(start, start + new, device=tokens.device)
        mask = cache.mask(new, tokens.device) if cache else None
        by = rotation(positions, self.config.head_width, self.config.rope_theta, self.config.rope_scaling)
        x = self.embed_tokens(tokens)
        again = self.recompute and torch.is_grad_enabled()
        for block, held in zip(self.layers, cache.layers if cache else repeat(None), strict=False):
            x = checkpoint(block, x, by, mask, held, use_reentrant=False) if again else block(x, by, mask, held)
        return self.norm(x)


class Llama(nn.Module):
    """The language model: tokens in, a score for each next token out."""

    def __init__(self, config: ModelConfig) -> None:
        """Weights are drawn from torch's generator: seed it first. Nothing is drawn for the device "meta"."""
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.tie()
        if not self.lm_head.weight.is_meta:
            with torch.no_grad():
                for parameter, weights in self.initial_weights():
                    parameter.copy_(weights)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Tokens B T, which stand after those in the cache, to logits B T V."""
        return self.lm_head(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """The same to the states that the head reads, B T D."""
        return self.model(tokens, cache)

    def tie(self) -> None:
        """Let head and embedding be one matrix, if the shape says so."""
        if self.config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def initial_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter and what it starts as, one at a time: torch's generator on the CPU decides, so seed it first.

        Normal weights; what writes to the residual stream is smaller by the root of its writers (GPT-2). Gains are ones.
        """
        for name, parameter in self.named_parameters():
            writers = 2 * self.config.layers if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
            weights = torch.empty(parameter.shape, device="cpu")
            yield parameter, weights.fill_(1.0) if parameter.ndim == 1 else weights.normal_(std=INIT_STD / math.sqrt(writers))


def count(config: ModelConfig) -> int:
    """The number of parameters of a shape, without building it; a tied matrix counts once."""
    attention = 2 * config.width * (config.heads + config.kv_heads) * config.head_width
    block = attention + 3 * config.width * config.hidden + 2 * config.width
    return config.layers * block + config.width + embeddings(config)


def embeddings(config: ModelConfig) -> int:
    """The part of `count` that is embedding and head."""
    return config.vocab_size * config.width * (1 if config.tied else 2)
