"""A real llama.cpp on the files that are written for it, where there is one; either of these brings one that is built already:

LLAMACTL_LLAMA_PYTHON=/path/to/a/python/with/llama-cpp-python pytest tests/export/test_llama_cpp.py
cd /tmp/llama && npm install node-llama-cpp --ignore-scripts
LLAMACTL_LLAMA_NODE=/tmp/llama pytest tests/export/test_llama_cpp.py
"""

import json
import os
import random
import subprocess
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.select import locate_checkpoint
from llamactl.export.gguf import export_gguf
from llamactl.inference.generate import Request, generate_samples
from llamactl.model.decode import Sampler, decode_tokens
from llamactl.tokenizer import bpe
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.tokenizer.chat import encode_chat
from llamactl.tokenizer.roles import add_roles
from tests.checkpoint.test_pretrained import folders as folders
from tests.cli.inline import type_in
from tests.conftest import make_dataset
from tests.export.test_exports import SHAPE, save

PYTHON, NODE = os.environ.get("LLAMACTL_LLAMA_PYTHON", ""), os.environ.get("LLAMACTL_LLAMA_NODE", "")
WHY = "neither LLAMACTL_LLAMA_PYTHON names an interpreter nor LLAMACTL_LLAMA_NODE a folder with node_modules"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON + NODE, reason=WHY)]

ASK_PYTHON = """
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

ASK_NODE = """
import fs from "node:fs";
import {getLlama} from "node-llama-cpp";
const asked = JSON.parse(fs.readFileSync(0, "utf8"));
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, maxThreads: 1});
const model = await llama.loadModel({modelPath: asked.file});
const context = await model.createContext({
  contextSize: 64, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"
});
const sequence = context.getSequence();
const said = [];
for (const prompt of asked.prompts) {
  await sequence.clearHistory();
  const ids = [model.tokens.bos, ...model.tokenize(prompt, false)], written = [];
  for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true}))
    if (written.push(token) >= 24) break;
  said.push([ids, written]);
}
console.log(JSON.stringify([said, asked.texts.map((text) => Array.from(model.tokenize(text, false)))]));
process.exit(0);
"""

TALK_NODE = """
import fs from "node:fs";
import {getLlama, LlamaChatSession, JinjaTemplateChatWrapper} from "node-llama-cpp";
const asked = JSON.parse(fs.readFileSync(0, "utf8"));
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, maxThreads: 1});
const model = await llama.loadModel({modelPath: asked.file});
const context = await model.createContext({
  contextSize: 64, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"
});
const contextSequence = context.getSequence(), said = [];
const template = model.fileInfo.metadata.tokenizer.chat_template;
const roles = {systemMessageRole: "system", userRoleName: "user", modelRoleName: "assistant"};
for (const question of asked.questions) {
  await contextSequence.clearHistory();
  const session = new LlamaChatSession({contextSequence, chatWrapper: new JinjaTemplateChatWrapper({template, ...roles})});
  session.setChatHistory([]);  // without a system message
  await session.prompt(question, {temperature: 0, maxTokens: 12});
  said.push(Array.from(contextSequence.contextTokens));
}
console.log(JSON.stringify(said));
process.exit(0);
"""


def ask(asked: dict[str, Any], node: str = ASK_NODE) -> Any:
    """What llama.cpp makes of prompts, greedily, and how it cuts texts."""
    script = Path(NODE) / f"ask-{os.getpid()}.mjs"  # a module finds others from where it is
    if not PYTHON:
        script.write_text(node)
    try:
        words = [PYTHON, "-c", ASK_PYTHON] if PYTHON else ["node", str(script)]
        done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True, check=False)
    finally:
        script.unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


NEAR = 0.01  # of logits whose deviation is 0.8: node-llama-cpp rounds elsewhere, so that the second of two equals may win

# The first is llama.cpp's own, by which it tells pre-tokenizers apart.
TORTURE = [
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n"
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 "
    "3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= "
    "нещо на Български ''''''```````\"\"\"\""
    "......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL",
    "Hello World", "  Hello", "\n =", "' era", "ied 4 ½ months", "<|endoftext|> as text", "\t\tx\r\n",
]  # fmt: skip


LLAMA3 = {"rope_scaling": 4.0, "rope_original_context": 16, "rope_low_freq": 1.0, "rope_high_freq": 4.0}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tie_embeddings": True},
        {"rope_scaling": 4.0},
        {"n_kv_heads": 4},
        LLAMA3,
        {"qkv_bias": True},
        {"qk_norm": True},
        {"qk_norm": True, "tie_embeddings": True, "head_dim": 32},
    ],
    ids=["llama", "tied", "linear", "heads", "llama3", "qwen2", "qwen3", "qwen3-tied"],
)
def test_llama_cpp_says_the_same(change: dict[str, object], home: Path, documents: list[str], tmp_path: Path) -> None:
    compare(bpe.train_bpe(iter(documents), 300), change, documents, tmp_path)


@pytest.mark.parametrize(
    ("made", "rows"),
    [(bpe.byte_tokenizer, 384), (bpe.gpt2_tokenizer, 50_304), (lambda: bpe.train_bpe(iter(["aaab "] * 9), 260), 384)],
    ids=["bytes", "gpt2", "bpe:260"],
)
def test_llama_cpp_reads_every_tokenizer(
    made: Callable[[], Tokenizer], rows: int, home: Path, documents: list[str], tmp_path: Path
) -> None:
    compare(made(), {"vocab_size": rows}, documents, tmp_path)


def test_a_model_of_transformers_is_continued_on_own_text_and_read_by_llama_cpp(
    home: Path, corpus: Path, documents: list[str], tmp_path: Path, folders: Callable[..., Path]
) -> None:
    """Its tokenizer prepares the text; the loss on held-out text falls; both others load what comes out."""
    folder = str(folders("llama3-rope"))
    make_dataset(home / "data" / "own", corpus, tokenizer=folder)
    settings = ["--set", "train.tokens_per_step=512", "--set", "train.precision=fp32", "--set", "optim.lr=0.003"]
    words = ["train", "--data", "own", "--init-from", folder, "--tokens", "20k", "--run", "further", "--yes", *settings]
    assert type_in(*words).code == 0
    losses = [
        json.loads(type_in("eval", "--data", "own", "--run", model, "--json").out)["results"]["own, val"]["loss"]
        for model in (folder, "further")
    ]
    assert losses[1] < losses[0] - 0.5
    path = locate_checkpoint("further")
    ids = AutoTokenizer.from_pretrained(path)("The people of", return_tensors="pt")
    other: Any = AutoModelForCausalLM.from_pretrained(path)
    theirs = other.generate(**ids, max_new_tokens=12, do_sample=False)
    model, tokenizer, _ = checkpoint_io.load_model(path, torch.device("cpu"))
    (*_, said) = generate_samples(model, tokenizer, Request(("The people of",), max_new_tokens=12, pick=Sampler(0.0)))
    assert said[0].tokens == theirs[0, ids["input_ids"].shape[1] :].tolist()
    compare_file(path, documents, tmp_path, TORTURE[1:])


def compare(tokenizer: Tokenizer, change: dict[str, object], documents: list[str], tmp_path: Path) -> None:
    """Hold llama.cpp's tokens of 50 prompts, and its ids of texts, against ours."""
    compare_file(save(SHAPE.model_copy(update=change), tokenizer), documents, tmp_path, TORTURE)


def compare_file(path: Path, documents: list[str], tmp_path: Path, texts: list[str]) -> None:
    """Compare as `compare` does, for a checkpoint."""
    model, tokenizer, _ = checkpoint_io.load_model(path, torch.device("cpu"))
    chance = random.Random(0)
    words = " ".join(documents[:3]).split()
    prompts = [" ".join(chance.sample(words, 3)) for _ in range(50)]
    said, ids = ask({"file": str(export_gguf(path, tmp_path / "out", "f32")), "prompts": prompts, "texts": texts})
    assert ids == [tokenizer.encode(text).tolist() for text in texts]
    for prompt, (read, written) in zip(prompts, said, strict=True):
        ours = tokenizer.encode_opening(prompt)
        assert read == ours
        if PYTHON:
            steps = decode_tokens(model, [ours], tokenizer.vocab_size, Sampler(0), [0])
            assert written == [int(step.tokens) for step in islice(steps, len(written))]
        with torch.inference_mode():
            logits = model(torch.tensor([ours + written]))[0, len(ours) - 1 : -1, : tokenizer.vocab_size]
        behind = logits.amax(-1) - logits.gather(1, torch.tensor(written)[:, None])[:, 0]
        assert behind.max() < NEAR


@pytest.mark.skipif(bool(PYTHON), reason="the script for a conversation is node's")
def test_llama_cpp_reads_a_conversation_by_the_template(home: Path, documents: list[str], tmp_path: Path) -> None:
    """What is said is the ids of ours, then comes the greedy answer, up to the end of its turn."""
    tokenizer = add_roles(bpe.train_bpe(iter(documents), 300))
    path = save(SHAPE.model_copy(update={"vocab_size": 384}), tokenizer)
    model, tokenizer, _ = checkpoint_io.load_model(path, torch.device("cpu"))
    questions = ["hello", "Where do you live?", " two\nlines "]
    for question, tokens in zip(
        questions,
        ask({"file": str(export_gguf(path, tmp_path / "out", "f32")), "questions": questions}, TALK_NODE),
        strict=True,
    ):
        ours = encode_chat(tokenizer, [{"role": "user", "content": question}], generation_prompt=True)
        assert tokens[: len(ours)] == ours
        with torch.inference_mode():
            logits = model(torch.tensor([tokens]))[0, len(ours) - 1 : -1, : tokenizer.vocab_size]
        written = torch.tensor(tokens[len(ours) :])
        assert len(written) > 3
        assert (logits.amax(-1) - logits.gather(1, written[:, None])[:, 0]).max() < NEAR
