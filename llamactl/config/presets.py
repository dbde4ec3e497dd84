"""The presets: shapes, and the settings that go with them."""

from typing import Any

# Small presets tie the output head to the embedding, so that the vocabulary does not dominate their size. `notebook` is the
# student's run that llamactl re-implements, corrected: its recipe on a plain Llama with fp32 master weights.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "model": dict(n_layers=4, dim=192, n_heads=3, n_kv_heads=1, head_dim=64, ffn_dim=512, context=256, tie_embeddings=True),
        "optim": dict(embedding_scale=6.0, beta2=0.99),  # for its small batches: docs/recipe.md
    },
    "10m": {
        "model": dict(
            n_layers=6, dim=384, n_heads=3, n_kv_heads=1, head_dim=128, ffn_dim=1024, context=512, tie_embeddings=True
        ),
    },
    "50m": {
        "model": dict(
            n_layers=8, dim=512, n_heads=4, n_kv_heads=2, head_dim=128, ffn_dim=1408, context=1024, tie_embeddings=True
        ),
    },
    "150m": {
        "model": dict(
            n_layers=12, dim=768, n_heads=6, n_kv_heads=2, head_dim=128, ffn_dim=2048, context=1024, tie_embeddings=False
        ),
    },
    "350m": {
        "model": dict(
            n_layers=24, dim=1024, n_heads=8, n_kv_heads=4, head_dim=128, ffn_dim=2816, context=1024, tie_embeddings=False
        ),
    },
    "1b": {
        "model": dict(
            n_layers=24, dim=2048, n_heads=16, n_kv_heads=4, head_dim=128, ffn_dim=5632, context=2048, tie_embeddings=False
        ),
    },
    "7b": {
        "model": dict(
            n_layers=32, dim=4096, n_heads=32, n_kv_heads=8, head_dim=128, ffn_dim=14336, context=4096, tie_embeddings=False
        ),
    },
    "notebook": {
        "model": dict(
            n_layers=16, dim=800, n_heads=16, n_kv_heads=16, head_dim=50, ffn_dim=1600, context=256, tie_embeddings=False
        ),
        "optim": dict(name="adamw", lr=1e-4, beta2=0.999, eps=1e-8),
        "schedule": dict(min_lr_ratio=0.0),
        "train": dict(tokens_per_step=12_800, tokens=181_000_000),
    },
}
