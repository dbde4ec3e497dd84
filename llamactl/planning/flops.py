"""Count the FLOPs of a token and of an update, and the parameters behind them."""

from collections import Counter

from llamactl.config.parameters import num_embedding_params, num_params
from llamactl.config.schema import ModelConfig
from llamactl.optim.muon import newton_schulz_flops


def flops_per_token(model: ModelConfig) -> float:
    """Count the training FLOPs of a token: 6 per weight of a matrix, and 12 L H E T for attention (PaLM, arXiv 2204.02311)."""
    # 2 for a multiplication and an addition, 3 for forward pass and both gradients. PaLM counts attention as if not causal.
    return 6 * num_matmul_params(model) + 12 * model.n_layers * model.n_heads * model.head_dim * model.context


def num_matmul_params(model: ModelConfig) -> int:
    """Count the weights that a token is multiplied with: those of blocks and head; the embedding is only looked up."""
    return num_params(model) - num_embedding_params(model) + model.vocab_size * model.dim


def update_flops(model: ModelConfig, optimizer: str, processes: int = 1) -> float:
    """Count the FLOPs of one update on the busiest of `processes` ranks: Muon's matrix products; AdamW has none."""
    if optimizer != "muon":
        return 0.0
    # Full matrices are split over ranks, so the busiest rank has one more where they can't be divided.
    per_rank = {shape: -(-number // processes) for shape, number in matrix_shapes(model).items()}
    return sum(number * newton_schulz_flops(min(shape), max(shape)) for shape, number in per_rank.items())


def matrix_shapes(model: ModelConfig) -> Counter[tuple[int, int]]:
    """Count the matrices of each shape (rows, columns) in the blocks: q, k, v, o, gate, up, down."""
    query, key = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    width, hidden = model.dim, model.ffn_dim
    shapes = [(query, width), (key, width), (key, width), (width, query), *2 * [(hidden, width)], (width, hidden)]
    return Counter(model.n_layers * shapes)


def num_block_params(model: ModelConfig) -> int:
    """Count the parameters of a block."""
    return (num_params(model) - num_embedding_params(model) - model.dim) // model.n_layers


def num_root_params(model: ModelConfig) -> int:
    """Count the parameters that are in no block: embedding, final norm and head."""
    return num_embedding_params(model) + model.dim
