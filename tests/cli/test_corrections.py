"""What a new user types wrong is answered with what to type: near names, and those of other tools."""

import shlex

import pytest

from llamactl.cli.corrections import COMMANDS, OPTIONS
from llamactl.config.other_names import normalize_name
from tests.cli.inline import type_in
from tests.test_docs import ALL


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("train --lr 3e-4", "Type: --set optim.lr=3e-4"),
        ("train --learning_rate=3e-4", "Type: --set optim.lr=3e-4"),
        ("train --epochs 3", "Example: --tokens 2M"),
        ("train --max-iters 5000", "Example: --tokens 2M"),
        ("train --batch-size 32", "Type: --set train.micro_batch=32"),
        ("train --min_lr 3e-5", "It is a share of the peak learning rate"),
        ("train --min_lr 3e-5", "Type: --set schedule.min_lr_ratio=VALUE"),
        ("train --layers 2", "Type: --set model.n_layers=2"),
        ("train --seed 3", "Type: --set train.seed=3"),
        ("train --save_minutes 3", "Type: --set train.save_minutes=3"),
        ("train --bf16", "Type: --precision bf16"),
        ("train --gpu", "Type: --device cuda"),
        ("train --wandb", "Type: --track wandb"),
        ("train --bias", "A Llama has no biases."),
        ("train --gradient_accumulation_steps 4", "train.tokens_per_step"),
        ("train --tokns 2M", "Did you mean --tokens?"),
        ("plan --gpu h100", "Type: --card h100"),
        ("config --n_layers 3", "Type: --set model.n_layers=3"),
        ("sample hi --num-samples 3", "Type: --n 3"),
        ("sample hi --max_new_tokens 5", "Type: --max-new-tokens 5"),
        ("sample --prompt 'a b'", "Type: llamactl sample 'a b'"),
        ("prepare my.txt --vocab-size 5000", "Type: --tokenizer bpe:5000"),
        ("prepare --input my.txt", "Type: llamactl prepare my.txt"),
        ("tokenize my.txt", "Try: llamactl prepare --help"),
        ("pretrain", "Try: llamactl train --help"),
        ("generate Hello", "Try: llamactl sample --help"),
        ("trian", "Did you mean train?"),
        ("runs delete a", "Try: llamactl runs remove --help"),
        ("export onnx", "Choose from: gguf, hf, web."),
        ("doctor --nothing-like-it", "Try: llamactl doctor --help"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_one(line: str, answer: str) -> None:
    done = type_in(*shlex.split(line))
    assert done.code == 2
    assert answer in " ".join(done.err.split())


@pytest.mark.usefixtures("home")
def test_a_name_that_there_is_not_is_no_damage() -> None:
    done = type_in("verify", "nosuch")
    assert done.code == 3
    assert done.err.startswith("✗ There is no finished dataset")


def test_what_the_answers_name_exists() -> None:
    assert {f"llamactl {name}" for name in COMMANDS} <= set(ALL)
    there = {option for command in ALL.values() for parameter in command.params for option in parameter.opts}
    assert set(OPTIONS) <= there


def test_no_command_is_called_what_leads_to_another() -> None:
    names = {normalize_name(name.removeprefix("llamactl ")) for name in ALL if name.count(" ") == 1}
    led_away = {other for name, others in COMMANDS.items() if name.count(" ") == 0 for other in others.split()}
    assert not names & led_away
