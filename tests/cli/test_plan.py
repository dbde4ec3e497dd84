"""`llamactl plan` for many devices, as people type it."""

import json
from pathlib import Path

import pytest

from llamactl.cli.ui.plan_tables import Tariff
from llamactl.errors import UsageError
from tests.cli.inline import type_in
from tests.cli.test_cli import run
from tests.conftest import make_dataset

LARGE = "plan --preset 7b --tokens 10B --set model.vocab_size=50304"


@pytest.fixture(autouse=True)
def data(home: Path, corpus: Path) -> None:
    make_dataset(home / "data" / "addresses", corpus)


@pytest.mark.parametrize("price", ["nan/h", "inf/h", "-1/h", "1e999/kWh", "2", "x/h"])
def test_a_price_is_a_finite_amount(price: str) -> None:
    with pytest.raises(UsageError, match="--price"):
        Tariff.read(price, 100.0)
    assert Tariff.read("2.50/h", 0.0).cost(7200) == "5.00"


@pytest.mark.parametrize("watts", ["nan", "inf"])
def test_a_power_is_a_finite_number(watts: str) -> None:
    assert "Invalid value for '--watts'" in type_in("plan", "--watts", watts).err


def test_eight_cards_in_each_way_then_the_budgets() -> None:
    done = run(f"{LARGE} --gpus 8 --card h100")
    lines = done.stdout.splitlines()
    assert " ".join(lines[0].split()) == "strategy memory per process fits sent per step time per step tokens/s"
    assert lines[1].startswith("ddp ")
    assert "no: 79.5 GB free" in lines[1]
    assert lines[2].startswith("fsdp ")
    assert lines[2].endswith("chosen")
    assert lines[3].startswith("tokens")
    said = " ".join(done.stderr.split())
    for words in (
        "8 processes, fsdp",
        "128 sequences of 4,096 tokens, 16 per process",
        "GB per process",
        "450 GB/s between devices; not measured",
        "unsharded weights and gradients",
        "NCCL buffers",
    ):
        assert words in said, words


@pytest.mark.slow
def test_sixteen_cards_are_two_machines() -> None:
    done = run(f"{LARGE} --gpus 16 --card h100")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:4]] == ["ddp", "hsdp:8", "fsdp"]
    assert "16 processes, hsdp:8, on 2 machines" in " ".join(done.stderr.split())
    assert "25 GB/s per GPU between machines" in done.stderr


@pytest.mark.slow
def test_json_has_the_ways_beside_the_budgets_and_one_card_is_as_it_was() -> None:
    many = json.loads(run("plan --tokens 10M --gpus 2 --card a4000 --json").stdout)
    assert [(way["name"], way["chosen"], way["fits"]) for way in many["ways"]] == [("ddp", True, True), ("fsdp", False, True)]
    assert {plan["processes"] for plan in many["budgets"]} == {2}
    assert {plan["parallel"] for plan in many["budgets"]} == {"ddp"}
    assert many["budgets"][0]["sent"] == sum(many["ways"][0]["traffic"].values()) > 0
    one = run("plan --tokens 10M --gpus 1 --card a4000 --json").stdout
    assert one == run("plan --tokens 10M --card a4000 --json").stdout
    assert [plan["tokens_per_step"] for plan in json.loads(one)] == [plan["tokens_per_step"] for plan in many["budgets"]]


@pytest.mark.slow
def test_processes_on_this_machine() -> None:
    done = run("plan --preset tiny --tokens 100k --device cpu --gpus 3 --parallel fsdp --set train.tokens_per_step=512")
    said = " ".join(done.stderr.split())
    assert "2 sequences of 256 tokens, 1 or 0 per process, micro-batch 1" in said
    assert "1 of 3 processes have no sequence" in said
    assert "3 processes, fsdp" in said
    assert done.stdout.splitlines()[2].endswith("chosen")


@pytest.mark.slow
def test_what_can_not_be_is_said() -> None:
    assert "--gpus and --probe" in run("plan --gpus 2 --probe", code=2).stderr
    assert "groups of 3" in run("plan --gpus 8 --card h100 --parallel hsdp:3", code=2).stderr
    assert "fp16" in run("plan --gpus 8 --card h100 --parallel fsdp --precision fp16", code=2).stderr
    assert "train.parallel" in run("plan --gpus 8 --card h100 --parallel both", code=2).stderr
    full = run(f"{LARGE} --gpus 2 --card h100", code=4)
    assert "4 such GPUs with --parallel fsdp" in full.stderr
    assert full.stdout.splitlines()[2].startswith("fsdp ")  # what there is to choose from is shown all the same
