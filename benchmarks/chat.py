"""The same greedy answers in three ways: `llamactl chat`, `llamactl serve` by OpenAI's client, llama.cpp on the GGUF file.

    python benchmarks/chat.py RUN questions.jsonl --llama-node FOLDER

FOLDER has node-llama-cpp (`npm install node-llama-cpp`). Without it llama.cpp is left out. Weights are f32 everywhere.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from openai import OpenAI
from serve import find_address

from llamactl.tokenizer.chat import TURN_END
from llamactl.tokenizer.plain_bpe import END_OF_TEXT

# What llama.cpp makes of a conversation's text, by the names of its control tokens, up to the end of the turn. That it reads
# the template from the file, and writes the same text by it, is in tests/export/test_llama_cpp.py.
TALK = """
import fs from "node:fs";
import {getLlama} from "node-llama-cpp";
const asked = JSON.parse(fs.readFileSync(0, "utf8"));
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, maxThreads: 1});
const model = await llama.loadModel({modelPath: asked.file});
const types = {experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"};
const sequence = (await model.createContext({contextSize: asked.context, ...types})).getSequence(), said = [];
for (const text of asked.texts) {
  await sequence.clearHistory();
  const written = [];
  for await (const token of sequence.evaluate(model.tokenize(text, true), {temperature: 0}))
    if (written.push(token) >= asked.tokens) break;
  said.push(model.detokenize(written));
}
console.log(JSON.stringify(said));
process.exit(0);
"""
TOKENS, CONTEXT = 100, 256


def main() -> None:
    """Print how many answers of each way are those of `llamactl chat`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("questions", type=Path)
    parser.add_argument("--llama-node", type=Path)
    options = parser.parse_args()
    conversations = [json.loads(line)["messages"] for line in options.questions.read_text("utf-8").splitlines()]
    words = ["chat", options.model, "--answer", str(options.questions), "--temperature", "0", "--max-new-tokens", str(TOKENS)]
    expected = [json.loads(line)["messages"][-1]["content"] for line in llamactl(*words).splitlines()]
    ways = {"serve": ask_server(options.model, conversations)}
    if options.llama_node:
        ways["llama.cpp"] = ask_llama_cpp(options.model, conversations, options.llama_node)
    for name, found in ways.items():
        # Spaces at the ends are the one thing that a way may trim.
        same = sum(ours.strip() == theirs.strip() for ours, theirs in zip(expected, found, strict=True))
        print(f"{name}: {same} of {len(expected)} answers are those of chat")


def llamactl(*words: str) -> str:
    """Run a command of llamactl's; returns what it prints on stdout."""
    return subprocess.run([sys.executable, "-m", "llamactl", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def ask_server(model: str, conversations: list[list[dict[str, str]]]) -> list[str]:
    """Ask `llamactl serve`, one conversation after another."""
    words = [sys.executable, "-m", "llamactl", "serve", model, "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        client = OpenAI(base_url=f"{find_address(server)}/v1", api_key="none", max_retries=0)
        try:
            asked = {"model": "", "temperature": 0, "max_completion_tokens": TOKENS}
            answers = [client.chat.completions.create(messages=each, **asked) for each in conversations]  # type: ignore[call-overload]
            return [answer.choices[0].message.content for answer in answers]
        finally:
            server.terminate()


def ask_llama_cpp(model: str, conversations: list[list[dict[str, str]]], node: Path) -> list[str]:
    """Export the model and ask llama.cpp."""
    script = node / "benchmark-chat.mjs"  # a module finds others from where it is
    script.write_text(TALK, "utf-8")
    with tempfile.TemporaryDirectory() as folder:
        llamactl("export", "gguf", model, "--type", "f32", "--out", folder)
        file = next(Path(folder).glob("*.gguf"))
        texts = [write_out(each) for each in conversations]
        asked = json.dumps({"file": str(file), "texts": texts, "tokens": TOKENS, "context": CONTEXT})
        done = subprocess.run(["node", str(script)], input=asked, stdout=subprocess.PIPE, text=True, check=True)
    script.unlink()
    said: list[str] = json.loads(done.stdout.splitlines()[-1])
    return said


def write_out(messages: list[dict[str, str]]) -> str:
    """Return a conversation as the chat template writes it, for an answer."""
    turns = "".join(f"<|{message['role']}|>{message['content']}{TURN_END}" for message in messages)
    return f"{END_OF_TEXT}{turns}<|assistant|>"


if __name__ == "__main__":
    main()
