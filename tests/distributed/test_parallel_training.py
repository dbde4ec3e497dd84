"""Many processes, one run: the same losses, whichever way they share the work, and one of them that speaks."""

import hashlib
import json
import os
import random
import signal
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint import safetensors_io
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.schema import Config, build_config
from llamactl.corpus.batches import Batch
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.distributed.context import World, broadcast_from_rank0, init_device
from llamactl.distributed.dtensor import is_sharded
from llamactl.errors import DataError, PeerFailed
from llamactl.hardware.device import choose_precision
from llamactl.planning.resolve import choose_sharding, resolve_config
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer.roles import add_roles
from llamactl.training import trainer
from llamactl.training.events import Sampled, Stepped, Validated
from llamactl.training.gradients import accumulate_gradients
from llamactl.training.trainer import Trainer, train_run
from tests import processes
from tests.conftest import TINY
from tests.corpus.test_conversations import prepare as prepare_chat
from tests.corpus.test_conversations import talk, write
from tests.processes import together

RATE = 1e11
WAYS = ("ddp", "fsdp", "hsdp:2")


def prepared(dataset: Dataset, **over: Any) -> tuple[Config, World]:
    """Config and world as `llamactl train` works them out, in each process."""
    # At the rate of TINY, rounding alone moves the losses of AdamW by 0.02 in twenty steps, also in a world of one.
    config = build_config([TINY, {"optim": {"lr": 0.0}}, over])
    world = choose_sharding(config, dataset, init_device(config.train))
    return resolve_config(config, dataset, world), world


def run_to_the_end(dataset: Dataset, name: str, **over: Any) -> list[Any]:
    """Train, and in the leading process leave the losses in a file."""
    config, world = prepared(dataset, **over)
    events = list(train_run(config, dataset, RunDir.from_name(name), world, RATE))
    if world.is_main:
        told = {
            "losses": [event.loss for event in events if isinstance(event, Stepped)],
            "validation": [event.loss for event in events if isinstance(event, Validated)],
            "samples": [event.text for event in events if isinstance(event, Sampled)],
        }
        (RunDir.from_name(name).path / "told.json").write_text(json.dumps(told))
    return events


def told(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RunDir.from_name(name).path / "told.json").read_text())
    return found


OPTIMIZERS = ("muon", "adamw")
ROUNDS = (1, 4)  # micro-batches of each process a step, of 8 windows, or 16, over 4 processes


def settings(optimizer: str, way: str, rounds: int) -> dict[str, Any]:
    return {
        "optim": {"name": optimizer},
        "train": {"parallel": way, "tokens_per_step": 512, "tokens": 20 * 512, "micro_batch": 4 // rounds, "save_every": 20},
    }


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """A home with a run of one process for each optimizer, and runs of four for each way and number of micro-batches."""
    home = tmp_path_factory.mktemp("world")
    patch = pytest.MonkeyPatch()
    patch.setenv("LLAMACTL_HOME", str(home))
    torch.set_num_threads(1)

    def all_ways() -> None:
        for optimizer, way, rounds in product(OPTIMIZERS, WAYS, ROUNDS):
            run_to_the_end(dataset, f"{optimizer}-{way[:4]}-{rounds}", **settings(optimizer, way, rounds))

    for optimizer in OPTIMIZERS:
        run_to_the_end(dataset, f"{optimizer}-one", **settings(optimizer, "auto", 1))
    together(4, all_ways)
    patch.undo()
    return home


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "way", "rounds"), list(product(OPTIMIZERS, ("ddp", "fsdp", "hsdp"), ROUNDS)))
def test_twenty_losses_are_those_of_one_process(
    optimizer: str, way: str, rounds: int, everything: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMACTL_HOME", str(everything))
    alone, many = told(f"{optimizer}-one"), told(f"{optimizer}-{way}-{rounds}")
    assert len(many["losses"]) == 20
    assert many["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert many["validation"] == pytest.approx(alone["validation"], abs=1e-5)
    assert many["samples"] == alone["samples"]


@pytest.mark.slow
def test_every_checkpoint_loads_in_every_other_world(
    everything: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is restored by four processes in each way, which save it again: the same bytes."""
    monkeypatch.setenv("LLAMACTL_HOME", str(everything))
    names = [f"{optimizer}-{way}-4" for optimizer, way in product(OPTIMIZERS, ("one", "ddp", "fsdp", "hsdp"))]
    names = [name.replace("one-4", "one") for name in names]

    def again() -> None:
        for name, way in product(names, WAYS):
            config, world = prepared(dataset, **settings(name.split("-")[0], way, 4))
            made = Trainer(config, dataset, RunDir.from_name(f"again-{name}-{way[:4]}"), world, RATE)
            checkpoint_io.restore_checkpoint(RunDir.from_name(name).checkpoint(20), made.model, made.optimizers)
            made.state.step = 20
            list(made.save_checkpoint())
            list(made.poll(wait=True))
            made.close()

    together(4, again)
    for name, way in product(names, ("ddp", "fsdp", "hsdp")):
        first, second = (RunDir.from_name(each).checkpoint(20) for each in (name, f"again-{name}-{way}"))
        for file in (checkpoint_format.WEIGHTS, checkpoint_format.OPTIMIZER):
            assert (first / file).read_bytes() == (second / file).read_bytes(), (name, way, file)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp", "hsdp"])
def test_hugging_face_loads_it(way: str, everything: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setenv("LLAMACTL_HOME", str(everything))
    path = RunDir.from_name(f"muon-{way}-4").checkpoint(20)
    theirs = LlamaForCausalLM.from_pretrained(path)
    ours, *_ = checkpoint_io.load_model(path, torch.device("cpu"))
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, ours(tokens), atol=1e-4)


def watched(dataset: Dataset, name: str, stop: int, killed: int | None = None, **over: Any) -> None:
    """Train to a step, and write down after each what each process has computed on; then one dies, or all leave off."""
    config, world = prepared(dataset, **over)
    run = RunDir.from_name(name)
    used: list[str] = []

    def noting(forward: nn.Module, batches: list[Batch], *rest: Any) -> torch.Tensor:
        rows = [row for batch in batches if batch.share for row in batch.inputs.tolist()]
        used[:] = [hashlib.sha256(json.dumps(row).encode()).hexdigest() for row in rows]
        return accumulate_gradients(forward, batches, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "accumulate_gradients", noting)
        for event in train_run(config, dataset, run, world, RATE):
            if isinstance(event, Stepped):
                with (run.path / f"seen-{world.size}-{world.rank}.jsonl").open("a") as log:
                    log.write(json.dumps([event.step, event.loss, used]) + "\n")
                if event.step == stop and killed == world.rank:
                    os.kill(os.getpid(), signal.SIGKILL)
                if event.step == stop and killed is None:
                    return


def seen(name: str, size: int) -> dict[int, tuple[float, list[str]]]:
    """The loss of each step, and what all processes together computed on."""
    steps: dict[int, tuple[float, list[str]]] = {}
    for rank in range(size):
        for line in (RunDir.from_name(name).path / f"seen-{size}-{rank}.jsonl").read_text().splitlines():
            step, loss, used = json.loads(line)
            steps[step] = (loss, sorted([*steps.get(step, (0.0, []))[1], *used]))
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("ways", [("ddp", "ddp"), ("hsdp:2", "fsdp")])
def test_a_run_whose_process_was_killed_goes_on_with_fewer(ways: tuple[str, str], dataset: Dataset) -> None:
    """Four processes, one of which is killed after ten steps, then two to step 15, then one: all on the same windows."""
    over = {"tokens_per_step": 7 * 32, "tokens": 20 * 7 * 32, "save_every": 4, "keep_last": 9, "micro_batch": 1}
    for name in ("alone", "many"):
        RunDir.from_name(name).path.mkdir(parents=True)
    watched(dataset, "alone", 20, train=over)
    pids = processes.launched(4, lambda: watched(dataset, "many", 10, killed=2, train={**over, "parallel": ways[0]}))
    began = time.monotonic()
    ended = [processes.status(pid) for pid in pids]
    assert ended[2] == -signal.SIGKILL
    assert [code for rank, code in enumerate(ended) if rank != 2] == [PeerFailed.code] * 3
    assert time.monotonic() - began < 60
    together(2, lambda: watched(dataset, "many", 15, train={**over, "parallel": ways[1]}))
    assert RunDir.from_name("many").steps()[-1] == 12
    watched(dataset, "many", 20, train=over)
    alone, first, second, third = seen("alone", 1), seen("many", 4), seen("many", 2), seen("many", 1)
    assert min(second) == 9
    assert min(third) == 13
    many = first | second | third
    assert {step: used for step, (_, used) in many.items()} == {step: used for step, (_, used) in alone.items()}
    assert len({window for _, used in many.values() for window in used}) == 7 * 20
    assert [many[step][0] for step in range(1, 21)] == pytest.approx([alone[step][0] for step in range(1, 21)], abs=1e-5)


def test_all_learn_what_the_first_works_out(home: Path) -> None:
    def ask() -> None:
        answer = broadcast_from_rank0(lambda: os.getpid())
        (home / f"{os.environ['RANK']}").write_text(f"{answer}")

    together(3, ask)
    assert len({(home / f"{rank}").read_text() for rank in range(3)}) == 1


def test_what_is_wrong_for_the_first_ends_all_and_only_it_says_so(home: Path) -> None:
    def fail() -> None:
        def wrong() -> None:
            raise DataError("It is damaged.")

        try:
            broadcast_from_rank0(wrong)
        except DataError:
            (home / f"said by {os.environ['RANK']}").touch()
            raise
        except SystemExit as silent:
            raise DataError(f"{silent.code}") from silent

    ended = [processes.status(pid) for pid in processes.launched(3, fail)]
    assert ended == [DataError.code] * 3
    assert [path.name for path in home.glob("said by *")] == ["said by 0"]


def test_all_decide_alike(home: Path) -> None:
    def decide() -> None:
        rank = int(os.environ["RANK"])
        world = init_device(build_config([TINY]).train)
        assert world.all_reduce_max(rank, -rank) == [2, 0]
        assert world.all_reduce_sum(torch.tensor([1.0, rank])).tolist() == [3.0, 3.0]
        assert broadcast_from_rank0(lambda: "first" if rank == 0 else "") == "first"

    together(3, decide)


def test_copies_hold_their_gradients_once(dataset: Dataset) -> None:
    """They stay where DDP sends them from, from one step to the next, also with several micro-batches."""

    def step_twice() -> None:
        config, world = prepared(dataset, train={"parallel": "ddp", "micro_batch": 1})
        made = Trainer(config, dataset, RunDir.from_name("a"), world, RATE)
        list(made.train_step())
        list(made.train_step())  # after the first step DDP puts its buckets into another order
        before = [parameter.grad.data_ptr() for parameter in made.model.parameters() if parameter.grad is not None]
        list(made.train_step())
        after = [parameter.grad.data_ptr() for parameter in made.model.parameters() if parameter.grad is not None]
        made.close()
        assert len(before) == len(list(made.model.parameters()))
        assert after == before

    together(2, step_twice)


@pytest.mark.parametrize("way", ["fsdp", "hsdp:2"])
def test_gains_of_norms_stay_in_fp32_and_are_the_same_for_all(way: str, home: Path, dataset: Dataset) -> None:
    """FSDP gathers a block in bf16, whose neighbouring numbers are 0.008 apart near 1: a gain is not one of them."""

    def step_twice() -> None:
        config, world = prepared(dataset, train={"parallel": way, "precision": "bf16"})
        made = Trainer(config, dataset, RunDir.from_name("a"), world, RATE)
        seen: set[torch.dtype] = set()
        norm = made.model.model.layers[1].input_layernorm
        assert isinstance(norm, nn.Module)
        norm.register_forward_pre_hook(lambda module, _: seen.add(module.weight.dtype))
        losses = [event.loss for _ in range(2) for event in made.train_step() if isinstance(event, Stepped)]
        made.close()
        gains = [weight for weight in made.model.parameters() if weight.ndim == 1]
        whole = [gain.tolist() for gain in gains if not is_sharded(gain)]
        assert seen == {torch.float32}
        assert len(whole) == 4
        assert not torch.equal(gains[0], torch.ones_like(gains[0]))
        (home / f"{world.rank}.json").write_text(json.dumps([losses, whole]))

    together(4, step_twice)
    assert len({(home / f"{rank}.json").read_text() for rank in range(4)}) == 1


@pytest.mark.parametrize(("items", "size"), [(7, 3), (3, 4), (8, 4), (1, 1)])
def test_shares_are_of_one_length_and_each_item_counts_once(items: int, size: int) -> None:
    worlds = [World(torch.device("cpu"), choose_precision("fp32", torch.device("cpu")), rank, size) for rank in range(size)]
    shares = [world.shard_evenly(range(items)) for world in worlds]
    assert len({len(share) for share in shares}) == 1
    assert sorted(item for share in shares for item, counts in share if counts) == list(range(items))


def test_ways_have_names() -> None:
    cpu = torch.device("cpu")
    names = [World(cpu, choose_precision("fp32", cpu), 0, 8, shards=shards).parallel for shards in (1, 8, 2)]
    assert names == ["ddp", "fsdp", "hsdp"]
    assert World(cpu, choose_precision("fp32", cpu)).parallel == "one"


@pytest.mark.slow
@pytest.mark.parametrize("over", [
    {"train": {"precision": "bf16", "activation_checkpointing": "on"}},
    {"model": {"tie_embeddings": True}, "train": {"compile": "on"}},
    {"model": {"dim": 36, "n_heads": 3, "n_kv_heads": 1, "head_dim": 10, "ffn_dim": 62}},
], ids=["bf16, recomputed", "tied, compiled", "shapes that divide by nothing"])  # fmt: skip
def test_the_same_run_in_every_way(over: dict[str, Any], dataset: Dataset) -> None:
    """To the rounding of its format: bf16 sums have three digits."""
    usual = {"tokens_per_step": 7 * 32, "tokens": 6 * 7 * 32, "micro_batch": 2}

    def with_way(way: str) -> dict[str, Any]:
        return {**over, "train": {**usual, **over.get("train", {}), "parallel": way}}

    def each_way() -> None:
        for way in WAYS:
            run_to_the_end(dataset, way[:4], **with_way(way))

    run_to_the_end(dataset, "one", **with_way("auto"))
    together(4, each_way)
    exact = over.get("train", {}).get("precision") != "bf16"
    for way in ("ddp", "fsdp", "hsdp"):
        assert told(way)["losses"] == pytest.approx(told("one")["losses"], abs=3e-5 if exact else 1e-2)


def held(name: str) -> int:
    """Bytes of main memory of this process: VmRSS now, VmHWM at most since `forget_the_most`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def forget_the_most() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fsdp", "hsdp:2"])
def test_saving_takes_no_more_memory_than_one_tensor(way: str, dataset: Dataset, home: Path) -> None:
    """A process's own part of weights and optimizer, the largest tensor, and a tenth."""
    shape = {"n_layers": 4, "dim": 512, "n_heads": 4, "n_kv_heads": 4, "head_dim": 128, "ffn_dim": 2048, "vocab_size": 20_000}

    def measure() -> None:
        config, world = prepared(dataset, model=shape, train={"parallel": way, "tokens_per_step": 4 * 32, "tokens": 4 * 32})
        made = Trainer(config, dataset, RunDir.from_name("a"), world, RATE)
        list(made.train_step())
        taken = take_snapshot(made.model, made.optimizers)
        own = taken.nbytes
        largest = max(safetensors_io.tensor_bytes(tensor) for each in taken for tensor in each.values())
        before = held("VmRSS")
        forget_the_most()
        list(made.save_checkpoint())
        more = held("VmHWM") - before
        assert list(made.poll(wait=True)) or not world.is_main
        made.close()
        (home / f"{world.rank}.json").write_text(json.dumps([own, largest, more]))

    together(4, measure)
    for rank in range(4):
        own, largest, more = json.loads((home / f"{rank}.json").read_text())
        assert own > 2 * largest
        assert own + more <= 1.1 * (own + largest), (rank, own, largest, more)
    assert RunDir.from_name("a").steps() == [1]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_loss_on_replies_is_that_of_one_process(way: str, home: Path, dataset: Dataset) -> None:
    """Processes have other numbers of targets that count: the mean is over all of them."""
    choice = random.Random(0)
    rows = [{"messages": talk(choice, turns=1, words=4)} for _ in range(120)]
    prepare_chat(write(home / "chat.jsonl", rows), add_roles(dataset.tokenizer), width=64)
    chat = DatasetDir.from_name("chat").open()
    over: dict[str, Any] = {
        "model": {"context": 64},
        "data": {"loss_on": "assistant", "separate_documents": True},
        "train": {"tokens_per_step": 320, "tokens": 10 * 320, "micro_batch": 1, "save_every": 20, "prompts": []},
    }
    torch.set_num_threads(1)
    run_to_the_end(chat, "one", **over)
    together(2, lambda: run_to_the_end(chat, "two", **over | {"train": over["train"] | {"parallel": way}}))
    assert told("two")["losses"] == pytest.approx(told("one")["losses"], abs=1e-5)
    assert told("two")["validation"] == pytest.approx(told("one")["validation"], abs=1e-5)
