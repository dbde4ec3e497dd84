"""The presets: shapes, and the settings that go with them."""

from typing import Any

# Small presets tie the head, so that the vocabulary does not dominate them. `notebook` is the student's run
# that llamactl re-implements, made correct: its recipe on a plain Llama with fp32 master weights.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "model": dict(layers=4, width=192, heads=3, kv_heads=1, head_width=64, hidden=512, context=256, tied=True),
        "optim": dict(embedding_scale=6.0, beta2=0.99),  # for its small batches: docs/recipe.md
    },
    "10m": {
        "model": dict(layers=6, width=384, heads=3, kv_heads=1, head_width=128, hidden=1024, context=512, tied=True),
    },
    "50m": {
        "model": dict(layers=8, width=512, heads=4, kv_heads=2, head_width=128, hidden=1408, context=1024, tied=True),
    },
    "150m": {
        "model": dict(layers=12, width=768, heads=6, kv_heads=2, head_width=128, hidden=2048, context=1024, tied=False),
    },
    "350m": {
        "model": dict(layers=24, width=1024, heads=8, kv_heads=4, head_width=128, hidden=2816, context=1024, tied=False),
    },
    "1b": {
        "model": dict(layers=24, width=2048, heads=16, kv_heads=4, head_width=128, hidden=5632, context=2048, tied=False),
    },
    "7b": {
        "model": dict(layers=32, width=4096, heads=32, kv_heads=8, head_width=128, hidden=14336, context=4096, tied=False),
    },
    "notebook": {
        "model": dict(layers=16, width=800, heads=16, kv_heads=16, head_width=50, hidden=1600, context=256, tied=False),
        "optim": dict(name="adamw", lr=1e-4, beta2=0.999, eps=1e-8),
        "schedule": dict(floor=0.0),
        "train": dict(tokens_per_step=12_800, tokens=181_000_000),
    },
}
