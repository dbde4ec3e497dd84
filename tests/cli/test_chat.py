"""`llamactl chat`: lines of a pipe, commands, a file of conversations, and a person at a terminal."""

import json
from pathlib import Path

import pytest
import torch

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.cli.ui import chat_loop
from llamactl.config.schema import ModelConfig, OptimConfig, build_config, dump_toml
from llamactl.inference.chat import Chat
from llamactl.inference.generate import Request
from llamactl.model.llama import Llama
from llamactl.optim.build import build_adamw
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer.bpe import Tokenizer, byte_tokenizer
from llamactl.tokenizer.roles import add_roles
from tests.cli.inline import type_in

SHAPE = ModelConfig(n_layers=1, dim=16, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=24, context=128, vocab_size=384)
FAST = ("--max-new-tokens", "6", "--temperature", "1")


@pytest.fixture
def run(home: Path) -> RunDir:
    """A run whose model has the tokens of conversations, and random weights."""
    made = RunDir.from_name("talker")
    made.path.mkdir(parents=True)
    made.config_path.write_text(dump_toml(build_config([{"model": SHAPE.model_dump()}])))
    save(made, 1, add_roles(byte_tokenizer()))
    return made


def save(run: RunDir, step: int, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = Llama(SHAPE)
    taken = take_snapshot(model, build_adamw(model, OptimConfig(lr=0.1)))
    state = State(step=step, tokens=1, seconds=1.0, skipped=0)
    checkpoint_io.save_checkpoint(run.checkpoint(step), taken, SHAPE, tokenizer, state)


def test_each_line_is_a_turn(run: RunDir) -> None:
    answer = type_in("chat", "talker", "--json", *FAST, stdin=b"hello\n\nand you?\r\n")
    assert answer.code == 0
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [row["role"] for row in rows] == ["user", "assistant"] * 2
    assert [row["content"] for row in rows[::2]] == ["hello", "and you?"]
    assert answer.out == type_in("chat", "talker", "--json", *FAST, stdin=b"hello\nand you?").out
    assert rows[3] != json.loads(type_in("chat", "talker", "--json", *FAST, stdin=b"and you?").out.splitlines()[1])


def test_commands_work_in_a_pipe_too(run: RunDir) -> None:
    first, again = type_in(
        "chat", "talker", *FAST, "--seed", "5", stdin=b"a\n/reset\n/seed 5\na\n/help\n/nosuch 3\n"
    ).out.split("\n")[:2]
    assert first == again
    answer = type_in("chat", "talker", *FAST, stdin=b"/retry\n/system be kind\n/temperature x\n")
    assert answer.out == ""
    assert "Nothing was answered yet" in answer.err
    assert "a new conversation" in answer.err
    assert "/temperature 1" in answer.err


def test_a_file_of_conversations_is_answered(run: RunDir, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    file.write_text(json.dumps({"messages": talk, "topic": "x"}) + "\n\n" + json.dumps({"messages": talk[:1]}) + "\n")
    answer = type_in("chat", "talker", "--answer", str(file), "--system", "be kind", *FAST)
    assert answer.code == 0
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert rows[0]["topic"] == "x"
    assert rows[0]["messages"][0] == {"role": "system", "content": "be kind"}
    assert rows[0]["messages"][1:-1] == talk
    assert [len(row["messages"]) for row in rows] == [5, 3]
    assert rows[1]["messages"][-1]["role"] == "assistant"


@pytest.mark.parametrize(
    "line", ["{", "3", '{"messages": []}', '{"messages": [{"role": "user", "content": 1}]}', "[" * 100_000]
)
def test_a_line_that_can_not_be_answered_is_named(run: RunDir, tmp_path: Path, line: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f"\n{line}\n")
    answer = type_in("chat", "talker", "--answer", str(file))
    assert answer.code == 3
    assert "Line 2 of" in answer.err


def test_what_can_not_be_said_is_refused(run: RunDir) -> None:
    assert type_in("chat", "talker", stdin=b"\xff\n").code == 3
    answer = type_in("chat", "talker", *FAST, stdin=b"long " * 200 + b"\nhello\n")
    assert answer.code == 0
    assert "too long" in answer.err
    assert type_in("chat", "talker", stdin=None).out == ""
    assert type_in("chat", "talker", "--system", "\udcff", stdin=b"x").code == 2


def test_a_model_of_texts_is_refused(home: Path, run: RunDir) -> None:
    save(run, 2, byte_tokenizer())
    answer = type_in("chat", "talker@2", stdin=b"x")
    assert answer.code == 2
    assert "llamactl sample" in answer.err


def test_a_person_asks_and_leaves(run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C drops a line, or ends an answer, which stays part of the conversation."""
    _, model, tokenizer, _ = checkpoint_io.open_model("talker", torch.device("cpu"))
    chat = Chat(model, tokenizer, Request((), 6))
    lines: list[str | BaseException] = ["hello", KeyboardInterrupt(), "", "/retry", "/reset", EOFError()]
    typed = iter(lines)

    def type_line(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", type_line)
    monkeypatch.setattr("llamactl.cli.ui.prompt_loop.load_history", lambda path: None)
    chat_loop.run_chat_loop(chat)
    assert chat.messages == []
    assert next(typed, None) is None

    def stopped(said: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "answer", stopped)
    chat_loop.obey(chat, "x", lambda said: chat_loop._answer(chat, said))
    assert "…" in capsys.readouterr().err
