"""A checkpoint folder: Hugging Face loads it as it is, it comes back bit for bit, and damage is found."""

import json
import random
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint import safetensors_io, snapshot
from llamactl.checkpoint import select as checkpoint_select
from llamactl.checkpoint.format import State
from llamactl.checkpoint.hf_config import read_hf_config
from llamactl.checkpoint.snapshot import take_snapshot
from llamactl.config.presets import PRESETS
from llamactl.config.schema import ModelConfig, OptimConfig, build_config, preset_settings
from llamactl.errors import DataError
from llamactl.model.llama import Llama
from llamactl.optim.build import OPTIMIZERS
from llamactl.runs.run_dir import RunDir
from llamactl.storage import atomic
from llamactl.storage.records import hash_file, read_record
from llamactl.tokenizer import bpe

SMALL = ModelConfig(n_layers=2, dim=48, n_heads=6, n_kv_heads=2, head_dim=8, ffn_dim=80, context=64, vocab_size=384)
DEEPEST = 2  # blocks of a preset that are compared; they are all alike, and 24 of `1b` would take 10 GB
WIDEST = 2048  # channels of one; two blocks of `7b` would take as much
LOGIT_TOLERANCE = 1e-4

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: PRESETS[name]["model"] for name in PRESETS},
    "tied": {"tie_embeddings": True},
    "untied": {"tie_embeddings": False},
    "grouped": {"n_heads": 8, "n_kv_heads": 2, "head_dim": 64, "dim": 256},
    "one key/value head": {"n_heads": 8, "n_kv_heads": 1, "head_dim": 64, "dim": 256},
    "full": {"n_heads": 4, "n_kv_heads": 4, "head_dim": 64, "dim": 256},
    "wide heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 128, "dim": 256},
    "scaled positions": {"rope_scaling": 2.5, "dim": 256, "n_heads": 4, "head_dim": 64},
    "theta": {"rope_theta": 500_000.0, "norm_eps": 1e-6, "dim": 256, "n_heads": 4, "head_dim": 64},
}


def write(path: Path, model: Llama, optimizers: list[Optimizer], state: State) -> None:
    checkpoint_io.save_checkpoint(path, take_snapshot(model, optimizers), model.config, bpe.byte_tokenizer(), state)


def save(path: Path, config: ModelConfig, step: int = 3, optimizer: str = "muon", loss: float | None = None) -> Llama:
    """A checkpoint after one step of training on noise, so that no weight or state is as it was initialised."""
    model = Llama(config)
    optimizers = OPTIMIZERS[optimizer](model, OptimConfig(lr=0.01), torch.float32)
    model(torch.randint(0, 257, (1, 16))).square().mean().backward()
    for each in optimizers:
        each.step()
    write(path, model, optimizers, State(step=step, tokens=9, seconds=1, validation_loss=loss))
    return model


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Llama]:
    path = tmp_path / "step-00000003"
    return path, save(path, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_hugging_face_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    config = build_config([preset_settings("150m"), {"model": {**VARIANTS[name], "vocab_size": 384}}]).model
    narrower = max(1, config.dim // WIDEST)
    sizes = {size: getattr(config, size) // narrower for size in ("dim", "n_heads", "n_kv_heads", "ffn_dim")}
    config = config.model_copy(update={**sizes, "n_layers": min(DEEPEST, config.n_layers)})
    ours = save(tmp_path / "checkpoint", config, optimizer="adamw")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", output_loading_info=True)
    theirs, report = loaded
    assert isinstance(theirs, LlamaForCausalLM)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.float32
    assert theirs.config.tie_word_embeddings == config.tie_embeddings
    tokens = torch.randint(0, 257, (2, 200))
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < LOGIT_TOLERANCE


@pytest.mark.parametrize("spelling", ["both", "rope_scaling", "rope_parameters"])
def test_hugging_face_scales_the_positions_as_we_do(spelling: str, tmp_path: Path) -> None:
    """A factor of 4 in old and new spelling; attention is sharpened, so that other positions give other logits."""
    config = SMALL.model_copy(update={"context": 1024, "rope_scaling": 4.0})
    models = [Llama(config), Llama(config.model_copy(update={"rope_scaling": 1.0}))]
    for name, weight in models[0].named_parameters():
        weight.data *= 20 if "q_proj" in name or "k_proj" in name else 3 if weight.ndim == 2 else 1
    models[1].load_state_dict(models[0].state_dict())
    write(tmp_path / "a", models[0], [], State(step=0, tokens=0, seconds=0))
    file = tmp_path / "a" / "config.json"
    tree = json.loads(file.read_text())
    assert tree["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert tree["rope_parameters"] == {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    kept = {
        key: value for key, value in tree.items() if not key.startswith("rope_s" if spelling == "rope_parameters" else "rope_p")
    }
    file.write_text(json.dumps(tree if spelling == "both" else kept))
    assert read_hf_config(tmp_path / "a") == config
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "a")
    tokens = torch.randint(0, 257, (1, 1024))
    with torch.no_grad():
        scaled, unscaled = ((model(tokens) - theirs(tokens).logits).abs().max() for model in models)
    assert scaled < LOGIT_TOLERANCE < 0.01 < unscaled


def test_unscaled_positions_are_described_as_ever(saved: tuple[Path, Llama]) -> None:
    tree = json.loads((saved[0] / "config.json").read_text())
    assert tree["rope_scaling"] is None
    assert tree["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("ropes", "says"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "contradict"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "4"}}, "factor of its rope is '4'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": True}}, "factor of its rope is True"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor of its rope is 0.5"),
        ({"rope_parameters": {"rope_type": "linear", "factor": float("nan")}}, "not JSON"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor of its rope is None"),
        ({"rope_parameters": {"rope_type": "linear", "factor": float("inf")}}, "not JSON"),
        ({"rope_parameters": "linear"}, "not an object"),
    ],
)
def test_ropes_that_are_not_known_are_refused(ropes: dict[str, Any], says: str, saved: tuple[Path, Llama]) -> None:
    file = saved[0] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | ropes))
    with pytest.raises(DataError, match=r"config\.json") as caught:
        read_hf_config(saved[0])
    assert says in str(caught.value)


def test_hugging_faces_tokenizer_gives_the_same_ids(tmp_path: Path, documents: list[str]) -> None:
    for ours in (bpe.gpt2_tokenizer(), bpe.byte_tokenizer(), bpe.train_bpe(iter(documents), 512)):
        path = tmp_path / str(ours.vocab_size)
        checkpoint_io.save_checkpoint(path, take_snapshot(Llama(SMALL), []), SMALL, ours, State(step=0, tokens=0, seconds=0))
        theirs = AutoTokenizer.from_pretrained(path)
        assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (ours.end, ours.end, ours.vocab_size)
        for text in [*documents[:20], "  two  spaces ", "don't 🦙 \n\n"]:
            assert theirs(text)["input_ids"] == ours.encode_opening(text)
            assert set(theirs(text)) == {"input_ids", "attention_mask"}
            assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text


def test_the_model_comes_back(saved: tuple[Path, Llama]) -> None:
    path, model = saved
    loaded, loaded_tokenizer, state = checkpoint_io.load_model(path, torch.device("cpu"))
    assert loaded.config == model.config
    assert state.step == 3
    assert loaded_tokenizer.vocab_size == 257
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
def test_optimizers_come_back_bit_for_bit(tmp_path: Path, optimizer: str, tied: bool) -> None:
    config = SMALL.model_copy(update={"tie_embeddings": tied})
    model = save(tmp_path / "a", config, optimizer=optimizer)
    other = Llama(config)
    optimizers = OPTIMIZERS[optimizer](other, OptimConfig(lr=0.01), torch.float32)
    checkpoint_io.restore_checkpoint(tmp_path / "a", other, optimizers)
    write(tmp_path / "b", other, optimizers, State(step=3, tokens=9, seconds=1))
    for file in (checkpoint_format.WEIGHTS, checkpoint_format.OPTIMIZER):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    parameters = dict(model.named_parameters())
    assert sum(len(each.state) for each in optimizers) == len(parameters)


def refused(path: Path, file: str) -> None:
    """Before anything of it is used, with the file's name."""
    model = Llama(SMALL)
    before = model.lm_head.weight.clone()
    with pytest.raises(DataError, match=file.replace(".", r"\.")):
        checkpoint_io.restore_checkpoint(path, model, [])
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_every_flipped_byte_of_the_small_files_is_found_and_named(saved: tuple[Path, Llama], mask: int) -> None:
    path, _ = saved
    for file in sorted(set(path.iterdir()) - {path / checkpoint_format.WEIGHTS, path / checkpoint_format.OPTIMIZER}):
        whole = file.read_bytes()
        for place in range(len(whole)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            with pytest.raises(DataError, match=file.name):
                checkpoint_format.read_verified_state(path)
        file.write_bytes(whole)
    checkpoint_format.read_verified_state(path)


@pytest.mark.parametrize("name", [checkpoint_format.WEIGHTS, checkpoint_format.OPTIMIZER])
def test_random_flipped_bytes_of_the_tensors_are_found(saved: tuple[Path, Llama], name: str) -> None:
    path, _ = saved
    file = path / name
    whole = file.read_bytes()
    for place in random.Random(0).sample(range(len(whole)), 500):
        with file.open("r+b") as open_file:
            open_file.seek(place)
            open_file.write(bytes([whole[place] ^ 0x10]))
        with pytest.raises(DataError, match=name):
            checkpoint_format.read_verified_state(path)
        file.write_bytes(whole)
    refused_when_cut(path, name)


def refused_when_cut(path: Path, name: str) -> None:
    whole = (path / name).read_bytes()
    for content in (b"", whole[:7], whole[:100], whole[: len(whole) // 2], whole[:-1], whole + b"\0"):
        (path / name).write_bytes(content)
        refused(path, name)
    (path / name).unlink()
    refused(path, name)


@pytest.mark.parametrize("name", [checkpoint_format.STATE, "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_cut_files_are_refused(saved: tuple[Path, Llama], name: str) -> None:
    refused_when_cut(saved[0], name)


def test_swapped_files_and_folders_are_refused(home: Path) -> None:
    run = RunDir.from_name("a")
    for step in (1, 2):
        save(run.checkpoint(step), SMALL, step)
    first, second = run.checkpoint(1), run.checkpoint(2)
    for name in (checkpoint_format.WEIGHTS, checkpoint_format.OPTIMIZER, checkpoint_format.STATE):
        kept = (second / name).read_bytes()
        shutil.copyfile(first / name, second / name)
        refused(second, checkpoint_format.STATE if name == checkpoint_format.STATE else name)
        (second / name).write_bytes(kept)
    checkpoint_format.read_verified_state(second)
    shutil.rmtree(first)
    second.rename(first)
    refused(first, checkpoint_format.STATE)


@pytest.mark.parametrize("change", [{"dim": 64}, {"n_layers": 3}, {"n_layers": 1}, {"tie_embeddings": True}, {"n_kv_heads": 3}])
def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    save(tmp_path / "a", SMALL.model_copy(update=change))
    model = Llama(SMALL)
    with pytest.raises(DataError, match="does not fit this run"):
        checkpoint_io.restore_checkpoint(tmp_path / "a", model, OPTIMIZERS["muon"](model, OptimConfig(), torch.float32))


def test_a_run_without_a_single_update_is_resumed_after_a_rollback(tmp_path: Path) -> None:
    """Which forgets how many of its steps were skipped."""
    model = Llama(SMALL)
    optimizers = OPTIMIZERS["muon"](model, OptimConfig(), torch.float32)
    for skipped, rollbacks, fits in ((5, 0, True), (2, 1, True), (2, 0, False)):
        path = tmp_path / f"{skipped}-{rollbacks}"
        write(path, model, optimizers, State(step=5, tokens=5, seconds=1, skipped=skipped, rollbacks=rollbacks))
        with nullcontext() if fits else pytest.raises(DataError, match="does not fit this run"):
            assert checkpoint_io.restore_checkpoint(path, model, optimizers).step == 5


def test_foreign_names_are_refused(saved: tuple[Path, Llama]) -> None:
    """Also where somebody sealed them well."""
    path, _ = saved
    state = read_record(path / checkpoint_format.STATE, State)
    for name in ("../../secret", "/etc/passwd", "..", ""):
        forged = state.model_copy(update={"files": {**state.files, name: "0" * 64}}).with_digest()
        (path / checkpoint_format.STATE).write_text(forged.to_text())
        refused(path, checkpoint_format.STATE)


def test_a_file_outside_is_not_read_whatever_its_hash(saved: tuple[Path, Llama]) -> None:
    path, _ = saved
    outside = path.parent / "outside"
    outside.write_bytes(b"secret")
    state = read_record(path / checkpoint_format.STATE, State)
    for name in ("../outside", str(outside)):
        forged = state.model_copy(update={"files": {**state.files, name: atomic.sha256(outside)}}).with_digest()
        (path / checkpoint_format.STATE).write_text(forged.to_text())
        refused(path, "outside")


def test_the_tensors_are_written_as_the_library_of_that_format_writes_them(saved: tuple[Path, Llama]) -> None:
    path, _ = saved
    for name in (checkpoint_format.WEIGHTS, checkpoint_format.OPTIMIZER):
        file = path / name
        assert file.read_bytes() == safetensors.torch.save(safetensors.torch.load_file(file), {"format": "pt"})


def test_the_newest_sound_checkpoint_is_used(home: Path) -> None:
    run = RunDir.from_name("a")
    for step in (1, 2, 3):
        save(run.checkpoint(step), SMALL, step)
    (run.checkpoint(3) / checkpoint_format.WEIGHTS).write_bytes(b"")
    shutil.copytree(run.checkpoint(3), run.path / "checkpoints" / "old-step-00000009")
    path, damaged = checkpoint_select.find_newest(run)
    assert path == run.checkpoint(2)
    assert "step-00000003/model.safetensors is damaged" in damaged[0]


def test_what_is_loaded_is_hashed_once_and_nothing_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer's state is not read, so its damage matters only to a resume; damaged weights lead to older ones."""
    run = RunDir.from_name("a")
    for step in (1, 2):
        save(run.checkpoint(step), SMALL, step)
    run.config_path.touch()
    hashed: list[str] = []

    def hash_noted(path: Path, root: Path | None = None, limit: int | None = None) -> str:
        hashed.append(path.name)
        return hash_file(path, root, limit)

    monkeypatch.setattr(checkpoint_format, "hash_file", hash_noted)
    files = set(checkpoint_format.read_state(run.checkpoint(2)).files) - {checkpoint_format.OPTIMIZER}
    for name in ("a", "a@2", str(run.checkpoint(2))):
        hashed.clear()
        path, _, _, state = checkpoint_io.open_model(name, torch.device("cpu"))
        assert (path, state.step) == (run.checkpoint(2), 2)
        assert sorted(hashed) == sorted(files)
    (run.checkpoint(2) / checkpoint_format.OPTIMIZER).write_bytes(b"")
    assert checkpoint_io.open_model("a", torch.device("cpu"))[3].step == 2
    assert checkpoint_select.find_newest(run)[0] == run.checkpoint(1)
    (run.checkpoint(2) / checkpoint_format.WEIGHTS).write_bytes(b"")
    assert checkpoint_io.open_model("a", torch.device("cpu"))[3].step == 1
    with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
        checkpoint_io.open_model("a@2", torch.device("cpu"))


@pytest.mark.parametrize(("value", "is_read"), [(3e38, True), (-3e38, True), (float("inf"), False), (float("nan"), False)])
def test_numbers_are_finite_one_by_one(value: float, is_read: bool, tmp_path: Path) -> None:
    """Also where the sum of finite ones is not."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"".join(safetensors_io.serialize_tensors({"a": torch.tensor([1.0, value, value]), "b": torch.ones(0)})))
    if is_read:
        assert dict(safetensors_io.iter_tensors(path))["a"][1] == value
    else:
        with pytest.raises(DataError, match="not finite"):
            list(safetensors_io.iter_tensors(path))


def test_checkpoints_are_found_as_people_name_them(home: Path) -> None:
    run = RunDir.from_name("a")
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.5)):
        save(run.checkpoint(step), SMALL, step, loss=loss)
    run.config_path.touch()
    assert [checkpoint_select.find_checkpoint(name).name[-1] for name in ("", "a", "a@1", "a@best")] == ["3", "3", "1", "2"]
    for name, says in (
        ("b", "no run 'b'"),
        ("a@9", "1, 2, 3"),
        ("a@x", "1, 2, 3"),
        (f"a@{'9' * 5_000}", "1, 2, 3"),
        ("a@\u0661", "1, 2, 3"),
    ):
        with pytest.raises(DataError, match=says):
            checkpoint_select.find_checkpoint(name)


def test_a_checkpoint_is_a_name_or_a_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.from_name("a")
    save(run.checkpoint(1), SMALL, 1)
    run.config_path.touch()
    shutil.copytree(run.checkpoint(1), home / "copy")
    assert (
        checkpoint_select.locate_checkpoint("a@1")
        == checkpoint_select.locate_checkpoint(str(run.checkpoint(1)))
        == run.checkpoint(1)
    )
    monkeypatch.chdir(home)
    assert checkpoint_select.locate_checkpoint("copy") == Path("copy")
    for name, says in ((str(run.path), "RUN@best"), ("./nosuch/x", "is not a model"), ("nosuch", "no run 'nosuch'")):
        with pytest.raises(DataError) as caught:
            checkpoint_select.locate_checkpoint(name)
        assert says in str(caught.value)


def test_old_checkpoints_go_but_not_the_best(home: Path) -> None:
    run = RunDir.from_name("a")
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0), (4, 4.0), (5, 5.0)):
        save(run.checkpoint(step), SMALL, step, loss=loss)
    checkpoint_select.prune_checkpoints(run, keep=2)
    assert run.steps() == [2, 4, 5]


def test_other_users_may_read_what_the_folder_lets_them(saved: tuple[Path, Llama]) -> None:
    path, _ = saved
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {path.stat().st_mode & 0o666}


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Llama]:
    """A checkpoint whose weights are in more than one file, as those of more than 5 GB are."""
    monkeypatch.setattr(snapshot, "LARGEST", 60_000)
    path = tmp_path / "step-00000003"
    return path, save(path, SMALL)


def test_large_weights_are_in_several_files_which_hugging_face_loads(several: tuple[Path, Llama]) -> None:
    path, ours = several
    files = sorted(path.glob("model-*.safetensors"))
    assert len(files) > 2
    assert not (path / checkpoint_format.WEIGHTS).exists()
    largest = max(tensor.nbytes for tensor in ours.state_dict().values())
    assert all(file.stat().st_size < max(60_000, largest) + 10_000 for file in files)
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    theirs, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(0, 257, (2, 60))
    with torch.no_grad():
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < LOGIT_TOLERANCE


@pytest.mark.parametrize("largest", [60_000, 100_000, 150_000])
@pytest.mark.parametrize(
    "change", [{}, {"tie_embeddings": True}, {"n_layers": 11}], ids=["untied", "tied", "more than ten layers"]
)
def test_several_files_are_those_that_transformers_writes(
    largest: int, change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a tensor alone is larger than a file may be: the embedding has 73,728 bytes."""
    monkeypatch.setattr(snapshot, "LARGEST", largest)
    save(tmp_path / "ours", SMALL.model_copy(update=change))
    LlamaForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs", max_shard_size=largest)
    ours, theirs = (
        {file.name: file.read_bytes() for file in (tmp_path / folder).glob("model*")} for folder in ("ours", "theirs")
    )
    assert len(ours) > 2  # files and their index
    assert ours == theirs


def test_several_files_come_back_bit_for_bit(several: tuple[Path, Llama]) -> None:
    path, model = several
    loaded, *_ = checkpoint_io.load_model(path, torch.device("cpu"))
    other = Llama(SMALL)
    checkpoint_io.restore_checkpoint(path, other, OPTIMIZERS["muon"](other, OptimConfig(), torch.float32))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert torch.equal(other.state_dict()[name], tensor)


def test_damage_to_one_of_several_files_is_found(several: tuple[Path, Llama]) -> None:
    path, _ = several
    for file in (*sorted(path.glob("model-*.safetensors")), path / checkpoint_format.INDEX):
        whole = file.read_bytes()
        file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        refused(path, file.name)
        file.unlink()
        refused(path, file.name)
        file.write_bytes(whole)
    checkpoint_format.read_verified_state(path)


@pytest.mark.parametrize("largest", [60_000, 10**9])
def test_weights_that_the_state_does_not_name_are_not_used(
    largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else is in the folder has no hash: here another model's weights, in several files or one, with their index."""
    path, other = tmp_path / "step-00000003", tmp_path / "other"
    monkeypatch.setattr(snapshot, "LARGEST", largest)
    save(other, SMALL)
    monkeypatch.setattr(snapshot, "LARGEST", 10**9 if largest == 60_000 else 60_000)
    model = save(path, SMALL)
    for file in other.glob("model*"):
        shutil.copyfile(file, path / file.name)
    loaded, *_ = checkpoint_io.load_model(path, torch.device("cpu"))
    restored, inherited = Llama(SMALL), Llama(SMALL)
    checkpoint_io.restore_checkpoint(path, restored, OPTIMIZERS["muon"](restored, OptimConfig(), torch.float32))
    checkpoint_io.restore_weights(path, inherited)
    for found in (loaded, restored, inherited):
        assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_one_digest_stands_for_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the same weights, another when one number differs, in whichever of the files."""
    model = save(tmp_path / "a", SMALL)
    write(tmp_path / "b", model, [], State(step=9, tokens=9, seconds=1))
    monkeypatch.setattr(snapshot, "LARGEST", 60_000)
    for folder, name in (("c", ""), ("d", ""), ("e", "lm_head.weight"), ("f", "model.norm.weight")):
        with torch.no_grad():
            dict(model.named_parameters()).get(name, torch.zeros(1)).view(-1)[0] += 1
        write(tmp_path / folder, model, [], State(step=9, tokens=9, seconds=1))
    one, same, several, alike, first, last = (
        read_record(tmp_path / folder / checkpoint_format.STATE, State).weights_digest for folder in "abcdef"
    )
    assert one == same == atomic.sha256(tmp_path / "a" / checkpoint_format.WEIGHTS)
    assert several == alike
    assert len({one, several, first, last}) == 4
    assert {len(digest) for digest in (one, several)} == {64}
    assert State(step=0, tokens=0, seconds=0).weights_digest == ""


def test_nothing_is_changed_by_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    save(tmp_path / "a", SMALL.model_copy(update={"n_layers": 3}))
    model = Llama(SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DataError, match="does not fit"):
        checkpoint_io.restore_weights(tmp_path / "a", model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
