"""Count the parameters of a model from its config alone, without PyTorch."""

from llamactl.config.schema import ModelConfig


def num_params(config: ModelConfig) -> int:
    """Return the number of parameters of a config without building the model; a tied matrix counts once."""
    attention = 2 * config.dim * (config.n_heads + config.n_kv_heads) * config.head_dim
    added = 2 * config.head_dim * config.qk_norm + (config.n_heads + 2 * config.n_kv_heads) * config.head_dim * config.qkv_bias
    block = attention + added + 3 * config.dim * config.ffn_dim + 2 * config.dim
    return config.n_layers * block + config.dim + num_embedding_params(config)


def num_embedding_params(config: ModelConfig) -> int:
    """Return the number of parameters in the embedding and the output head."""
    return config.vocab_size * config.dim * (1 if config.tie_embeddings else 2)
