"""What runs are held against, carried over to their tokenizer."""

import math
from pathlib import Path

import pytest

from llamactl.config.schema import build_config
from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.dataset_info import DatasetInfo, Recipe, Shard
from llamactl.errors import DataError, UsageError
from llamactl.report.baselines import GPT2, NOTEBOOK, choose_baselines, gpt2_level, notebook_curve, reads_their_text
from llamactl.runs.run_dir import RunDir


def described(source: str, tokenizer: str, bytes_per_token: float) -> DatasetInfo:
    """A dataset's description, whose validation split spells more a token than its training split."""
    shards = tuple(
        Shard(file=f"{split}/00000.npy", tokens=1000, documents=1, text_bytes=int(1000 * size), sha256="0" * 64)
        for split, size in (("train", bytes_per_token), ("val", 9.0))
    )
    recipe = Recipe(source=source, inputs="i", tokenizer=tokenizer, val_fraction=0.5)
    return DatasetInfo(
        recipe=recipe, tokenizer="t", vocab_size=9, dtype="uint16", shards=shards, documents_read=1, skipped={}
    ).with_digest()


def trained(name: str, info: DatasetInfo) -> RunDir:
    """A run on a dataset of which there is only the description."""
    data = DatasetDir.from_name(name)
    data.path.mkdir(parents=True)
    data.info_path.write_text(info.model_dump_json())
    run = RunDir.from_name(name)
    run.start(build_config([{"data": {"name": name}}]), {})
    return run


def test_the_notebook_as_it_was_read_off_its_picture() -> None:
    reference = notebook_curve(described("openwebtext", "mistral", 4.05))
    first, last = reference.rows[0], reference.rows[-1]
    assert [first[name] for name in ("step", "tokens", "loss")] == pytest.approx([200, 2_550_000, 6.70])
    assert [last[name] for name in ("step", "tokens", "loss")] == pytest.approx([14_000, 178_500_000, 4.15])
    assert first["seconds"] == pytest.approx(2_550_000 / 15_300)
    assert first["flops"] == pytest.approx(6 * 153.7e6 * 2_550_000, rel=1e-3)
    assert min(NOTEBOOK) == 3.86


@pytest.mark.parametrize("ours", [1.0, 3.62, 4.41])
def test_bits_per_byte_stay_as_they_are_at_any_tokenizer(ours: float) -> None:
    for make, loss, theirs in ((notebook_curve, 3.86, 4.05), (gpt2_level, 3.12, 4.41)):
        reference = make(described("openwebtext", "bpe:8192", ours))
        here = min((row["loss"] for row in reference.rows), default=reference.level)
        assert here / ours / math.log(2) == pytest.approx(loss / theirs / math.log(2))
        assert f"this tokenizer's {ours:.2f} bytes per token" in reference.label


def test_gpt2s_loss_is_as_it_was_measured_at_its_own_tokenizer() -> None:
    reference = gpt2_level(described("openwebtext", "gpt2", 4.5))
    assert (reference.level, reference.rows) == (GPT2, ())
    assert reference.label == "GPT-2 124M: 3.12"


def test_references_come_by_themselves_only_where_the_text_is_theirs(home: Path) -> None:
    web = trained("web", described("openwebtext", "gpt2", 4.41))
    speeches = trained("speeches", described("sample", "gpt2", 4.41))
    assert [reads_their_text(run) for run in (web, speeches)] == [True, False]
    assert [len(choose_baselines([], run)) for run in (web, speeches)] == [2, 0]
    assert [reference.label for reference in choose_baselines(["gpt2", "gpt2"], speeches)] == ["GPT-2 124M: 3.12"]
    assert choose_baselines(["none"], web) == []
    with pytest.raises(UsageError, match="Did you mean 'notebook'"):
        choose_baselines(["notebok"], web)


def test_without_its_dataset_a_run_has_no_bytes_per_token(home: Path) -> None:
    run = trained("web", described("openwebtext", "gpt2", 4.41))
    DatasetDir.from_name("web").info_path.unlink()
    assert choose_baselines([], run) == []
    with pytest.raises(DataError, match="no finished dataset"):
        choose_baselines(["notebook"], run)
