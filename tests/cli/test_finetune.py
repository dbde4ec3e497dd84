"""`llamactl finetune` as people type it: any MODEL, the same command again, and killed at random moments."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamactl.corpus.dataset import DatasetDir
from llamactl.hardware import throughput
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer.chat import encode_chat
from tests.checkpoint.test_pretrained import MODELS, folders
from tests.cli.inline import type_in
from tests.cli.test_resuming import SMALL, prepared
from tests.corpus.test_conversations import talk, write
from tests.processes import status, typed
from tests.training.test_survival import logged
from tests.training.test_trainer import assert_equal, weights

assert folders
assert prepared
FAST = (
    "--device", "cpu", "--precision", "fp32", "--set", "train.tokens_per_step=256", "--set", "train.compile=off",
    "--set", "train.eval_every=100", "--set", "train.save_every=3", "--set", "train.sample_tokens=2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: 1e11)


@pytest.fixture
def chat(tmp_path: Path) -> str:
    """A file of short conversations."""
    choice = random.Random(0)
    return str(write(tmp_path / "chat.jsonl", [{"messages": talk(choice, turns=1, words=4)} for _ in range(60)]))


@pytest.fixture
def base(home: Path, prepared: Path) -> str:
    """A run of a few steps on bytes, with a context of 64."""
    shutil.copytree(prepared, home / "data" / "addresses")
    options = SMALL.replace("context=32", "context=64").replace("'", "").split()
    assert type_in("train", "--run", "base", "--data", "addresses", "--tokens", "384", *options).code == 0
    return "base"


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_is_fine_tuned_and_comes_back(name: str, folders: Callable[..., Path], chat: str) -> None:
    folder = folders(name, torch.bfloat16 if name.endswith("tied") else torch.float32)
    answer = type_in("finetune", chat, "--from", str(folder), "--run", "ft", "--epochs", "1", *FAST)
    assert answer.code == 0, answer.err
    run = RunDir.from_name("ft")
    made = run.checkpoint(run.steps()[-1])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(made), AutoTokenizer.from_pretrained(made)
    # A Mistral without a window is a Llama.
    assert model.config.model_type == name.split("-")[0].replace("mistral", "llama").replace("llama3", "llama")
    messages = [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "is."},
        {"role": "user", "content": "a"},
    ]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == encode_chat(DatasetDir.from_name("ft").open().tokenizer, messages, generation_prompt=True)
    with torch.inference_mode():
        assert model(torch.tensor([ids])).logits.isfinite().all()
    assert tokenizer.convert_tokens_to_ids("<|end|>") in model.generation_config.eos_token_id


def test_the_same_command_continues_and_others_are_refused(base: str, chat: str) -> None:
    words = ("finetune", chat, "--from", base, "--run", "ft", "--epochs", "2", *FAST)
    assert type_in(*words).code == 0
    run = RunDir.from_name("ft")
    expected = weights(run)
    shutil.rmtree(run.checkpoint(run.steps()[-1]))
    again = type_in(*words)
    assert again.code == 0
    assert "was complete already" in again.err
    assert_equal(expected, weights(run))
    assert "already finished" in type_in(*words).err
    assert type_in("train", "--resume", "ft").code == 0
    other = type_in("finetune", chat, "--from", "base@4", "--run", "ft", "--epochs", "2", *FAST)
    assert (other.code, "It is another one (model: base@6, now base@4)" in other.err) == (2, True)
    # More epochs are a larger budget, which a run may get.
    assert type_in(*words[: -len(FAST) - 1], "3", *FAST).code == 0
    assert RunDir.from_name("ft").config().train.tokens == 3 * DatasetDir.from_name("ft").info().total("train", "tokens")


def test_text_of_the_run_is_mixed_in_and_its_loss_is_measured(base: str, chat: str) -> None:
    answer = type_in("finetune", chat, "--from", base, "--mix", "0.2", "--epochs", "1", *FAST)
    assert answer.code == 0, answer.err
    assert "against forgetting" in answer.err
    assert RunDir.from_name("chat-base").config().data.name == "chat-base"
    found = json.loads(type_in("eval", "--run", "chat-base", "--data", "addresses", "--json").out)
    assert next(iter(found["results"].values()))["tokens"] > 1000
    own = json.loads(type_in("eval", "--run", "chat-base", "--json").out)["results"]["chat-base, val"]
    rows = [json.loads(line) for line in RunDir.from_name("chat-base").metrics_path.read_text().splitlines()]
    assert own["loss"] == pytest.approx(next(row["loss"] for row in rows if row["kind"] == "evaluation"), abs=1e-6)
    assert type_in("verify", "chat-base").code == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--mix", "0.2", "--mix-from", "nothing"), 3, "no finished dataset"),
        (("--tokens", "1k", "--time", "1m"), 2, "exclude each other"),
        (("--context", "8"), 3, "no conversations"),
        (("--set", "optim.lr=x"), 2, "optim.lr"),
    ],
)
def test_mistakes_are_told_with_their_exit_code(words: tuple[str, ...], code: int, said: str, base: str, chat: str) -> None:
    answer = type_in("finetune", chat, "--from", base, *words, *FAST)
    assert (answer.code, said in answer.err) == (code, True), answer.err
    assert not RunDir.from_name("chat-base").config_path.exists()


def test_a_time_buys_a_budget_that_a_resumed_run_keeps(base: str, chat: str) -> None:
    words = ("finetune", chat, "--from", base, "--run", "ft", "--time", "30s", *FAST)
    answer = type_in(*words)
    assert answer.code == 0, answer.err
    run = RunDir.from_name("ft")
    tokens = run.config().train.tokens
    assert 0 < tokens <= 4 * DatasetDir.from_name("ft").info().total("train", "tokens")
    assert "already finished" in type_in(*words).err
    assert run.config().train.tokens == tokens


def test_a_dry_run_prints_the_plan_alone(base: str, chat: str) -> None:
    answer = type_in("finetune", chat, "--from", base, "--dry-run", *FAST)
    assert answer.code == 0
    assert "from base@6" in answer.err
    assert not RunDir.from_name("chat-base").path.exists()


@pytest.mark.slow
def test_the_command_killed_at_random_moments_ends_with_the_same_bits(home: Path, base: str, chat: str) -> None:
    """Also while it makes its rows: the same command is all that is typed."""

    def command(name: str) -> str:
        return " ".join(("finetune", chat, "--from", base, "--run", name, "--epochs", "12", *FAST))

    log, chance = home / "log.txt", random.Random(5)
    started = time.monotonic()
    assert status(typed(command("whole"), log, os.setsid)) == 0, log.read_text()
    took, killed = time.monotonic() - started, 0
    for _ in range(6):
        pid = typed(command("killed"), log, os.setsid)
        time.sleep(chance.uniform(0, took / 3))
        os.kill(pid, signal.SIGKILL)
        killed += status(pid) == -signal.SIGKILL
    assert status(typed(command("killed"), log, os.setsid)) == 0, log.read_text()
    assert killed >= 2
    assert DatasetDir.from_name("killed").info() == DatasetDir.from_name("whole").info()
    assert_equal(weights(RunDir.from_name("whole")), weights(RunDir.from_name("killed")))
    assert logged("killed") == logged("whole")


@pytest.mark.parametrize("option", [("--epochs", "inf"), ("--epochs", "nan"), ("--mix", "nan"), ("--val-fraction", "nan")])
def test_a_number_that_is_none_is_refused(base: str, chat: str, option: tuple[str, str]) -> None:
    assert type_in("finetune", chat, "--from", base, *option).code == 2


def test_a_model_that_was_fine_tuned_gets_the_text_of_its_base_again(base: str, chat: str, tmp_path: Path) -> None:
    """And the dataset of conversations is not what the next `train` takes."""
    assert type_in("finetune", chat, "--from", base, "--run", "one", "--epochs", "1", *FAST).code == 0
    assert DatasetDir.from_name("").path.name == "addresses"
    answer = type_in("finetune", chat, "--from", "one", "--run", "two", "--epochs", "1", *FAST)
    assert answer.code == 0
    assert DatasetDir.from_name("two").info().recipe.mixed_with
    shutil.rmtree(DatasetDir.from_name("addresses").path)
    answer = type_in("finetune", chat, "--from", "one", "--run", "three", "--epochs", "1", *FAST)
    assert "no text is mixed in" in answer.err
