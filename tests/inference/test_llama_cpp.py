"""A real llama.cpp on the files that are written for it, where there is one:

LLAMACTL_LLAMA_PYTHON=/path/to/a/python/with/llama-cpp-python pytest tests/inference/test_llama_cpp.py
"""

import json
import os
import random
import subprocess
from itertools import islice
from pathlib import Path

import pytest
import torch

from llamactl import checkpoint
from llamactl import tokenizer as tokenizers
from llamactl.inference.gguf import export
from llamactl.model.decode import Picker, decode
from tests.inference.test_exports import SHAPE, save

PYTHON = os.environ.get("LLAMACTL_LLAMA_PYTHON", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="LLAMACTL_LLAMA_PYTHON names no interpreter")]

ASK = """
import json, sys
from itertools import islice
from llama_cpp import Llama
asked = json.load(sys.stdin)
model = Llama(asked["file"], n_ctx=64, n_threads=1, verbose=False, type_k=0, type_v=0)  # 0: a cache in f32, too
said = []
for prompt in asked["prompts"]:
    ids = model.tokenize(prompt.encode(), add_bos=True, special=False)
    said.append([ids, list(islice(model.generate(ids, temp=0.0, reset=True), 24))])
print(json.dumps([said, [model.tokenize(text.encode(), add_bos=False, special=False) for text in asked["texts"]]]))
"""

# The first is llama.cpp's own, by which it tells pre-tokenizers apart.
TORTURE = [
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n"
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 "
    "3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= "
    "нещо на Български ''''''```````\"\"\"\""
    "......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL",
    "Hello World", "  Hello", "\n =", "' era", "ied 4 ½ months", "<|endoftext|> as text", "\t\tx\r\n",
]  # fmt: skip


@pytest.mark.parametrize("change", [{}, {"tied": True}, {"rope_scaling": 4.0}, {"kv_heads": 4}])
def test_llama_cpp_says_the_same(change: dict[str, object], home: Path, documents: list[str], tmp_path: Path) -> None:
    path = save(SHAPE.model_copy(update=change), tokenizers.train_bpe(iter(documents), 300))
    model, tokenizer, _ = checkpoint.load_model(path, torch.device("cpu"))
    chance = random.Random(0)
    words = " ".join(documents[:3]).split()
    prompts = [" ".join(chance.sample(words, 3)) for _ in range(50)]
    asked = {"file": str(export(path, tmp_path / "out", "f32")), "prompts": prompts, "texts": TORTURE}
    done = subprocess.run([PYTHON, "-c", ASK], input=json.dumps(asked), capture_output=True, text=True, check=True)
    said, ids = json.loads(done.stdout.splitlines()[-1])
    assert ids == [tokenizer.encode(text).tolist() for text in TORTURE]
    for prompt, (read, written) in zip(prompts, said, strict=True):
        ours = [tokenizer.end, *tokenizer.encode(prompt).tolist()]
        assert read == ours
        steps = decode(model, [ours], tokenizer.vocab_size, Picker(0), torch.Generator())
        assert written == [int(step.tokens) for step in islice(steps, len(written))]
