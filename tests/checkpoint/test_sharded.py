"""Checkpoints of models whose weights lie in parts: the same folder as from one process, without room for a second copy."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint import snapshot
from llamactl.checkpoint.format import State
from llamactl.checkpoint.snapshot import Snapshot, take_snapshot
from llamactl.config.schema import Config, ModelConfig, OptimConfig
from llamactl.distributed import dtensor
from llamactl.distributed.dtensor import full_tensor
from llamactl.errors import DataError, PeerFailed, WriteFailed
from llamactl.model.llama import Llama
from llamactl.optim.build import OPTIMIZERS
from llamactl.runs.run_dir import RunDir
from llamactl.tokenizer import bpe
from llamactl.training.async_checkpoint import AsyncCheckpointer
from tests import processes
from tests.processes import together

EVEN = ModelConfig(n_layers=2, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=64, context=32, vocab_size=128)
# Rows that four do not divide: 34 of the norms, 62, 6 of q_proj, of which the last process has none, and 2 of k_proj.
UNEVEN = ModelConfig(n_layers=2, dim=34, n_heads=3, n_kv_heads=1, head_dim=2, ffn_dim=62, context=32, vocab_size=131)
TIED = EVEN.model_copy(update={"tie_embeddings": True})
SHAPES = {"even": EVEN, "uneven": UNEVEN, "tied": TIED}
MESHES = {"1-D": (4,), "2-D": (2, 2), "2-D, parts of one": (4, 1)}
STATE = State(step=2, tokens=9, seconds=1)

Made = tuple[Llama, list[Optimizer]]


def mesh(shape: tuple[int, ...]) -> DeviceMesh:
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])


def made(config: ModelConfig, over: DeviceMesh | None, seed: int = 0) -> Made:
    """A model, in parts where there is a mesh, and its AdamW."""
    torch.manual_seed(seed)
    model = Llama(config)
    if over is not None:
        for block in model.model.layers:
            fully_shard(block, mesh=over)
        fully_shard(model, mesh=over)
    return model, OPTIMIZERS["adamw"](model, OptimConfig(lr=0.01), torch.float32)


def trained(made: Made) -> Made:
    """Two steps on noise, another one on each process."""
    model, optimizers = made
    generator = torch.Generator().manual_seed(int(os.environ.get("RANK", 0)))
    for _ in range(2):
        model(torch.randint(0, 128, (2, 16), generator=generator)).square().mean().backward()
        for each in optimizers:
            each.step()
            each.zero_grad()
    return made


def save(path: Path, taken: Snapshot, config: ModelConfig) -> None:
    """By all processes together."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        checkpoint_io.save_checkpoint(path, taken, config, bpe.byte_tokenizer(), STATE)
    else:
        taken.gather()


def gathered(taken: Snapshot) -> Snapshot:
    """The same, whole in each process, by PyTorch's own way."""
    return Snapshot(*({name: full_tensor(tensor).clone() for name, tensor in each.items()} for each in taken))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("over", MESHES)
@pytest.mark.parametrize("kind", SHAPES)
def test_the_folder_is_that_of_one_process(kind: str, over: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by four, of tensors in parts, in one file or several; read by four, two and one, and written again."""
    config = SHAPES[kind]

    def by_four() -> None:
        model, optimizers = trained(made(config, mesh(MESHES[over])))
        taken = take_snapshot(model, optimizers)
        assert taken.is_sharded
        assert taken.is_finite()
        alone = gathered(taken)
        assert not alone.is_sharded
        for largest, folder in ((10**9, "one file"), (20_000, "several files")):
            monkeypatch.setattr(snapshot, "LARGEST", largest)
            save(home / folder / "parts", taken, config)
            if dist.get_rank() == 0:
                checkpoint_io.save_checkpoint(home / folder / "whole", alone, config, bpe.byte_tokenizer(), STATE)

    def again(size: int, shape: tuple[int, ...] | None) -> Callable[[], None]:
        def restored() -> None:
            model, optimizers = made(config, mesh(shape) if shape else None, seed=9)
            state = checkpoint_io.restore_checkpoint(home / "several files" / "parts", model, optimizers)
            assert state.step == 2
            save(home / "one file" / f"by {size}", take_snapshot(model, optimizers), config)
            trained((model, optimizers))  # the state is laid out so that it can go on

        return restored

    together(4, by_four)
    several = contents(home / "several files" / "parts")
    assert len([name for name in several if name.startswith("model-")]) > 2
    assert several == contents(home / "several files" / "whole")
    one = contents(home / "one file" / "whole")
    assert contents(home / "one file" / "parts") == one
    together(4, again(4, MESHES[over]))
    together(2, again(2, (2,)))
    again(1, None)()
    for size in (4, 2, 1):
        assert contents(home / "one file" / f"by {size}") == one, size


def test_nothing_is_changed_in_parts_by_what_does_not_fit(home: Path) -> None:
    model, optimizers = trained(made(EVEN.model_copy(update={"n_layers": 3}), None))
    save(home / "a", take_snapshot(model, optimizers), model.config)

    def refused() -> None:
        ours, state = made(EVEN, mesh((2,)))
        before = {name: dtensor.local_shard(tensor).clone() for name, tensor in ours.state_dict().items()}
        with pytest.raises(DataError, match="does not fit this run"):
            checkpoint_io.restore_checkpoint(home / "a", ours, state)
        with pytest.raises(DataError, match=r"model\.safetensors does not fit this run"):
            checkpoint_io.restore_weights(home / "a", ours)
        assert all(torch.equal(dtensor.local_shard(tensor), before[name]) for name, tensor in ours.state_dict().items())

    together(2, refused)


def test_a_part_that_is_no_number_is_seen_by_the_process_that_has_it(home: Path) -> None:
    def look() -> None:
        model, optimizers = trained(made(UNEVEN, mesh((4,))))
        last = dtensor.local_shard(dict(model.named_parameters())["model.layers.1.mlp.up_proj.weight"])
        assert take_snapshot(model, optimizers).is_finite()
        with torch.no_grad():
            last[-1, -1] = float("nan") if dist.get_rank() == 3 else 1.0
        assert take_snapshot(model, optimizers).is_finite() == (dist.get_rank() != 3)

    together(4, look)


def saver(leads: bool, config: ModelConfig = EVEN) -> AsyncCheckpointer:
    return AsyncCheckpointer(RunDir.from_name("a"), Config(model=config), bpe.byte_tokenizer(), leads)


def test_all_save_and_the_first_says_so_once(home: Path) -> None:
    def together_once() -> None:
        leads = dist.get_rank() == 0
        ours = saver(leads)
        ours.save(take_snapshot(*trained(made(EVEN, mesh((2,))))), STATE)
        assert ours.poll() == (STATE if leads else None)
        assert ours.poll(wait=True) is None
        ours.close()

    together(2, together_once)
    assert RunDir.from_name("a").steps() == [2]
    checkpoint_format.read_verified_state(RunDir.from_name("a").checkpoint(2))


def test_of_a_whole_model_only_the_first_saves(home: Path) -> None:
    taken = take_snapshot(*trained(made(EVEN, None)))
    other = saver(leads=False)
    other.save(taken, STATE)
    assert other.poll(wait=True) is None
    assert not RunDir.from_name("a").checkpoints.exists()
    first = saver(leads=True)
    first.save(taken, STATE)
    assert first.poll(wait=True) == STATE


@pytest.mark.parametrize("when", ["at once", "after the weights"])
def test_a_disk_that_can_not_be_written_ends_all_and_leaves_nothing(
    when: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first says why; for the others it is gone."""
    run = RunDir.from_name("a")

    def full(self: Any, name: str, parts: Any) -> None:
        for part in parts if name == checkpoint_format.WEIGHTS else ():
            del part
        if when == "at once" or name == checkpoint_format.OPTIMIZER:
            raise OSError("no disk")

    def fail() -> None:
        made_here = take_snapshot(*trained(made(EVEN, mesh((3,)))))
        saver(dist.get_rank() == 0).save(made_here, STATE)

    monkeypatch.setattr("llamactl.storage.atomic.FolderDraft.write", full)
    ended = [processes.status(pid) for pid in processes.launched(3, fail)]
    assert ended == [WriteFailed.code, PeerFailed.code, PeerFailed.code]
    assert list(run.checkpoints.iterdir()) == []


def held(name: str) -> int:
    """Bytes of main memory of this process: VmRSS now, VmHWM at most since `forget_the_most`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def forget_the_most() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def in_parts(rows: int, over: DeviceMesh) -> Tensor:
    """A matrix of numbers of which this process has never held more than its part."""
    mine = torch.randn(rows // over.size(), 1000)
    return DTensor.from_local(mine, over, [Shard(0)], run_check=False, shape=torch.Size((rows, 1000)), stride=(1000, 1))


@pytest.mark.parametrize("size", [2, 4])
def test_saving_takes_room_for_one_tensor(size: int, home: Path) -> None:
    """Of 200 MB, the largest 80 MB; a process holds its part, at most one tensor more, and a tenth."""

    def measure() -> None:
        over = mesh((size,))
        taken = Snapshot({"a": in_parts(20_000, over), "b": in_parts(10_000, over)}, {"a:c": in_parts(20_000, over)})
        before = held("VmRSS")
        forget_the_most()
        save(home / "a", taken, EVEN)
        (home / f"{dist.get_rank()}.json").write_text(json.dumps([taken.nbytes, held("VmHWM") - before]))

    together(size, measure)
    assert sum((home / "a" / name).stat().st_size for name in (checkpoint_format.WEIGHTS, checkpoint_format.OPTIMIZER)) > 200e6
    for rank in range(size):
        own, more = json.loads((home / f"{rank}.json").read_text())
        assert own == 200e6 / size
        assert more <= 80e6 + 0.1 * (own + 80e6), (rank, more)
        assert rank == 0 or more <= 5e6, (rank, more)  # those that only send need none of it


@pytest.mark.slow
def test_restoring_takes_room_for_one_tensor(home: Path) -> None:
    """Beside what stays: the part of weights that is there, and that of the optimizer, which is made."""
    config = ModelConfig(n_layers=1, dim=256, n_heads=2, n_kv_heads=2, head_dim=128, ffn_dim=512, vocab_size=40_000)
    largest = 40_000 * 256 * 4

    def fresh(over: DeviceMesh) -> Made:
        with torch.device("meta"):
            model, optimizers = made(config, over)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                dtensor.local_shard(parameter).fill_(1)
        return model, optimizers

    def write() -> None:
        model, optimizers = fresh(mesh((2,)))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        for each in optimizers:
            each.step()
        save(home / "a", take_snapshot(model, optimizers), config)

    def measure() -> None:
        model, optimizers = fresh(mesh((2,)))
        weights = take_snapshot(model, optimizers).nbytes
        before = held("VmRSS")
        forget_the_most()
        checkpoint_io.restore_checkpoint(home / "a", model, optimizers, trusted=True)
        more = held("VmHWM") - before
        own = take_snapshot(model, optimizers).nbytes - weights
        (home / f"{dist.get_rank()}.json").write_text(json.dumps([own, more]))

    together(2, write)
    together(2, measure)
    for rank in range(2):
        own, more = json.loads((home / f"{rank}.json").read_text())
        assert own > 1.9 * largest
        # A fifth: each number is looked at, as NaN is refused, so that the mapped pages of the file count too.
        assert more <= 1.2 * (own + largest), (rank, own, more)
