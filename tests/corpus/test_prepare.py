"""Documents to shards: the same bytes whatever the workers or the interruptions, and nothing lost on the way."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from llamactl.corpus import pieces
from llamactl.corpus import prepare as prepare_module
from llamactl.corpus.dataset import Dataset, DatasetDir
from llamactl.corpus.dataset_info import Recipe, Shard
from llamactl.corpus.engines import local_engine, ray_engine
from llamactl.corpus.pieces import Job, Receipt
from llamactl.corpus.prepare import Estimated, PieceDone, Sealed, Share, finish_dataset, prepare_dataset
from llamactl.corpus.sources import Source, open_source
from llamactl.corpus.verify import check_dataset
from llamactl.errors import DataError, DiskFull, OutOfSpace
from tests.conftest import make_dataset


@pytest.fixture
def big(tmp_path: Path, documents: list[str]) -> Path:
    """Enough text for four pieces."""
    folder = tmp_path / "big"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:02d}.txt").write_text(f"{number}\n" + "".join(documents)[: 370_000 + number], "utf-8")
    return folder


def recipe(planned: Source, **settings: object) -> Recipe:
    base = {"source": "big", "inputs": planned.inputs, "tokenizer": "bytes", "val_fraction": 0.1}
    return Recipe.model_validate({**base, **settings})


def test_tokens_decode_to_the_documents(dataset: Dataset, documents: list[str]) -> None:
    found = []
    for shard in (*dataset.train, *dataset.val):
        ends = np.flatnonzero(shard == dataset.tokenizer.end)
        found += [dataset.tokenizer.decode(piece) for piece in np.split(shard, ends + 1)[:-1]]
        assert shard[-1] == dataset.tokenizer.end
    assert sorted(found) == sorted(documents)


def test_the_counts_add_up(dataset: Dataset, documents: list[str]) -> None:
    info = dataset.info
    assert info.documents_read == info.total("train", "documents") + info.total("val", "documents") == len(documents)
    assert info.total("train", "text_bytes") + info.total("val", "text_bytes") == sum(len(d.encode()) for d in documents)
    assert info.total("train", "tokens") == sum(map(len, dataset.train))
    assert 2 <= info.total("val", "documents") <= 16


def test_empty_documents_are_counted(tmp_path: Path) -> None:
    for number, text in enumerate(["one", "", "two", " \n\t", "three"]):
        (tmp_path / f"{number}.txt").write_text(text)
    info = make_dataset(tmp_path / "data", tmp_path, tokenizer="bytes").info()
    assert (info.documents_read, info.skipped) == (5, {"empty": 2})


@pytest.mark.slow
def test_workers_do_not_change_a_byte(big: Path, home: Path) -> None:
    digests = set()
    for workers in (1, 2, 4):
        source = open_source([str(big)])
        assert len(source.pieces) == 4
        folder = DatasetDir(home / str(workers))
        events = list(prepare_dataset(source, recipe(source, max_tokens=5_000_000), folder, local_engine(workers)))
        assert isinstance(events[-1], Sealed)
        digests.add(folder.info().digest)
    assert len(digests) == 1


@pytest.mark.parametrize("seed", [-1, 0, 1])
def test_the_order_of_a_directory_does_not_change_a_byte(
    big: Path, home: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A file system lists names as it likes: here the other way round (-1) and shuffled."""
    source = open_source([str(big)])
    list(prepare_dataset(source, recipe(source), DatasetDir(home / "plain"), local_engine(1)))
    listing = Path.iterdir

    def mixed(path: Path) -> Iterator[Path]:
        found = sorted(listing(path), reverse=True)
        return iter(found if seed < 0 else random.Random(seed).sample(found, len(found)))

    monkeypatch.setattr(Path, "iterdir", mixed)
    source = open_source([str(big)])
    list(prepare_dataset(source, recipe(source), DatasetDir(home / "mixed"), local_engine(1)))
    assert DatasetDir(home / "mixed").info().digest == DatasetDir(home / "plain").info().digest


@pytest.mark.parametrize("most", [900_000, 3_000_000, 2_220_144])
def test_max_tokens_stops_at_a_document(big: Path, home: Path, most: int) -> None:
    source = open_source([str(big)])
    folder = DatasetDir(home / "cut")
    list(prepare_dataset(source, recipe(source, max_tokens=most), folder, local_engine(1)))
    dataset = folder.open()
    tokens = dataset.info.total("train", "tokens") + dataset.info.total("val", "tokens")
    assert most - 380_000 < tokens <= most
    assert all(shard[-1] == dataset.tokenizer.end for shard in dataset.train)


def test_an_interrupted_prepare_goes_on(big: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source([str(big)])
    whole, stopped = DatasetDir(home / "whole"), DatasetDir(home / "stopped")
    list(prepare_dataset(source, recipe(source), whole, local_engine(1)))
    events = prepare_dataset(source, recipe(source), stopped, local_engine(1))
    for event in events:
        if isinstance(event, PieceDone) and event.piece == 1:
            events.close()  # type: ignore[attr-defined]  # as Ctrl-C does
            break
    assert not stopped.info_path.exists()
    encoded = []
    encode = pieces._encode

    def spy(job: Job) -> Receipt:
        encoded.append(job.piece)
        return encode(job)

    monkeypatch.setattr(pieces, "_encode", spy)
    kept = [
        event.kept
        for event in prepare_dataset(source, recipe(source), stopped, local_engine(1))
        if isinstance(event, PieceDone)
    ]
    assert kept == [True, True, False, False]
    assert encoded == [2, 3]
    assert stopped.info().digest == whole.info().digest
    assert sorted(path.name for path in stopped.path.iterdir()) == ["dataset.json", "tokenizer.json", "train", "val"]


def test_a_complete_dataset_is_kept_and_another_recipe_refused(home: Path, corpus: Path) -> None:
    folder = make_dataset(home / "data" / "a", corpus, tokenizer="bytes")
    before = folder.info_path.read_bytes()
    source = open_source([str(corpus)])
    same = recipe(source, source="corpus")
    newer = make_dataset(home / "data" / "newer", corpus)
    assert DatasetDir.from_name("") == newer
    assert [event.kept for event in prepare_dataset(source, same, folder, local_engine(1)) if isinstance(event, Sealed)] == [
        True
    ]
    assert DatasetDir.from_name("") == folder, "what was asked for last is what the next command takes"
    with pytest.raises(DataError, match="other settings: tokenizer"):
        list(prepare_dataset(source, same.model_copy(update={"tokenizer": "gpt2"}), folder, local_engine(1)))
    assert folder.info_path.read_bytes() == before


def test_the_same_content_is_the_same_dataset_however_it_is_typed(
    home: Path, corpus: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        (home / f"{number}.json").write_text(dataset.tokenizer.description)
    monkeypatch.chdir(corpus.parent)
    source, folder = open_source([str(corpus)]), DatasetDir(home / "data" / "a")
    asked = recipe(source, tokenizer=str(home / "1.json"))
    # Interrupted after the first piece, and once it was complete.
    list(islice(prepare_dataset(source, asked, folder, local_engine(1)), 3))
    for words in (corpus.name, f"./{corpus.name}/", str(corpus)):
        source = open_source([words])
        again = recipe(source, source=words, tokenizer=str(home / "2.json"))
        events = list(prepare_dataset(source, again, folder, local_engine(1)))
        assert all(event.kept and not event.stale for event in events if isinstance(event, PieceDone) and event.piece == 0)
        assert isinstance(events[-1], Sealed)
    (home / "2.json").write_text(dataset.tokenizer.description + " ")
    with pytest.raises(DataError, match="another tokenizer"):
        list(prepare_dataset(source, again, folder, local_engine(1)))
    with pytest.raises(DataError, match="other settings: tokenizer"):
        list(prepare_dataset(source, recipe(source, tokenizer="bpe:512"), folder, local_engine(1)))


def test_a_file_that_grows_after_its_duplicates_were_marked_is_said_to_have_changed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{number} a document"}}\n' for number in range(40)))
    marks = pieces._marks

    def grow(job: Job) -> np.ndarray:
        with (tmp_path / "a.jsonl").open("a") as file:
            file.write('{"text": "one more"}\n')
        return marks(job)

    monkeypatch.setattr(pieces, "_marks", grow)
    source = open_source([str(tmp_path / "a.jsonl")])
    with pytest.raises(DataError, match="has changed while it was read"):
        list(prepare_dataset(source, recipe(source, dedup=True), DatasetDir(home / "data" / "a"), local_engine(1)))


@pytest.mark.parametrize("piece", [0, 99_999, 100_000, 1_234_567])
def test_any_number_of_pieces_has_names(piece: int, home: Path) -> None:
    path = DatasetDir(home).shard("train", piece)
    shard = Shard(file=f"train/{path.name}", tokens=1, documents=1, text_bytes=1, sha256="0" * 64)
    assert (shard.split, shard.piece) == ("train", piece)


def test_one_document_is_too_few(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only one")
    with pytest.raises(DataError, match="more than one document"):
        make_dataset(tmp_path / "data", tmp_path, tokenizer="bytes")


def test_two_documents_are_enough(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 100)
    info = make_dataset(tmp_path / "data", tmp_path, tokenizer="bytes", val_fraction=0.001).info()
    assert (info.total("train", "documents"), info.total("val", "documents")) == (1, 1)


def test_an_error_in_a_worker_is_told_in_its_own_words(big: Path, home: Path) -> None:
    (big / "13.txt").write_bytes(b"\xff" * 370_000)
    source = open_source([str(big)])
    with pytest.raises(DataError, match=r"13\.txt is not UTF-8"):
        list(prepare_dataset(source, recipe(source), DatasetDir(home / "bad"), local_engine(2)))


def test_a_vocabulary_above_65536_takes_uint32() -> None:
    assert (pieces.token_dtype(65_536), pieces.token_dtype(65_537)) == ("uint16", "uint32")


def test_duplicates_are_left_out_and_counted(big: Path, home: Path) -> None:
    """Copies within a piece, in a later one, and of what is held out."""
    for number, name in enumerate(("03.txt", "03.txt", "17.txt", "00.txt")):
        (big / f"9{number}.txt").write_bytes((big / name).read_bytes())
    source = open_source([str(big)])
    digests = set()
    for workers in (1, 2):
        folder = DatasetDir(home / f"dedup{workers}")
        list(prepare_dataset(source, recipe(source, dedup=True), folder, local_engine(workers)))
        info = folder.info()
        assert (info.documents_read, info.skipped) == (28, {"duplicate": 4})
        digests.add(info.digest)
    assert len(digests) == 1
    for number in range(4):
        (big / f"9{number}.txt").unlink()
    source = open_source([str(big)])
    list(prepare_dataset(source, recipe(source), DatasetDir(home / "plain"), local_engine(1)))
    plain, dedup = (DatasetDir(home / name).open() for name in ("plain", "dedup1"))
    assert all(
        np.array_equal(np.concatenate(a), np.concatenate(b)) for a, b in ((plain.train, dedup.train), (plain.val, dedup.val))
    )


@pytest.mark.parametrize("most", [0, 3_000_000])
def test_shares_of_many_machines_are_one_dataset(big: Path, home: Path, most: int) -> None:
    source = open_source([str(big)])
    whole, shared = DatasetDir(home / "whole"), DatasetDir(home / "shared")
    list(prepare_dataset(source, recipe(source, max_tokens=most), whole, local_engine(1)))
    for number in (3, 1):
        list(prepare_dataset(source, recipe(source, max_tokens=most), shared, local_engine(1), share=Share(number, 3)))
        assert not shared.info_path.exists()
    with pytest.raises(DataError, match=r"1 of 4 pieces are missing: 1\."):
        list(finish_dataset(source, recipe(source, max_tokens=most), shared))
    list(prepare_dataset(source, recipe(source, max_tokens=most), shared, local_engine(1), share=Share(2, 3)))
    for path in big.iterdir():
        os.utime(path, (0, 0))  # another machine's copies
    list(finish_dataset(open_source([str(big)]), recipe(source, max_tokens=most), shared))
    assert shared.info().digest == whole.info().digest


def test_unreadable_documents_are_counted_over_all_shares(tmp_path: Path, home: Path) -> None:
    rows = "".join(f'{{"text": "{number} a document of its own"}}\n' for number in range(40))
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f"no JSON\n{rows}")
    source = open_source([str(tmp_path / "*.jsonl")])
    source = replace(source, pieces=tuple((part,) for part in source.parts))
    for allowed in (1, 2):
        for number in (1, 2):
            shared = DatasetDir(home / "data" / str(allowed))
            list(prepare_dataset(source, recipe(source, max_bad_docs=allowed), shared, local_engine(1), share=Share(number, 2)))
    with pytest.raises(DataError, match=r"2 documents can't be read"):
        list(finish_dataset(source, recipe(source, max_bad_docs=1), DatasetDir(home / "data" / "1")))
    list(finish_dataset(source, recipe(source, max_bad_docs=2), DatasetDir(home / "data" / "2")))
    assert DatasetDir(home / "data" / "2").info().skipped == {"unreadable": 2}


@pytest.mark.slow
def test_a_file_that_changed_between_two_calls_is_read_again(big: Path, home: Path) -> None:
    folder = DatasetDir(home / "a")
    source = open_source([str(big)])
    list(prepare_dataset(source, recipe(source), folder, local_engine(1), share=Share(1, 4)))
    first = big / "00.txt"
    text = first.read_text("utf-8")
    first.write_text(text[::-1], "utf-8")
    source = open_source([str(big)])
    kept = [
        event.kept for event in prepare_dataset(source, recipe(source), folder, local_engine(1)) if isinstance(event, PieceDone)
    ]
    assert kept == [False] * 4
    made = folder.open()
    assert text[:-50:-1] in "".join(made.tokenizer.decode(shard) for shard in (*made.train, *made.val))


KILLS = int(os.environ.get("LLAMACTL_KILLS", "12"))
KILLED_RUNS = int(os.environ.get("LLAMACTL_KILLED_RUNS", "1"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLED_RUNS))
def test_many_kills_at_random_instants_change_nothing(big: Path, home: Path, seed: int) -> None:
    """LLAMACTL_KILLS=100 is the long version, LLAMACTL_KILLS=10 LLAMACTL_KILLED_RUNS=10 the broad one."""
    chosen = random.Random(seed)
    words = [sys.executable, "-m", "llamactl", "prepare", str(big), "--tokenizer", "bpe:300", "--workers", "2", "--name"]
    started = time.monotonic()
    subprocess.run([*words, "whole"], check=True, capture_output=True)
    usual = time.monotonic() - started
    for _ in range(KILLS):
        process = subprocess.Popen(
            [*words, "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(chosen.uniform(0.1, usual))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if DatasetDir.from_name("killed").info_path.exists():
            assert DatasetDir.from_name("killed").info().digest == DatasetDir.from_name("whole").info().digest
            shutil.rmtree(DatasetDir.from_name("killed").path)
    subprocess.run([*words, "killed"], check=True, capture_output=True)
    assert DatasetDir.from_name("killed").info().digest == DatasetDir.from_name("whole").info().digest
    assert not [file for file, damage in check_dataset(DatasetDir.from_name("killed")) if damage]
    assert not list(DatasetDir.from_name("killed").path.rglob(".*draft"))


@pytest.mark.slow
def test_a_full_disk_loses_nothing(
    big: Path, home: Path, mount: Callable[[Path, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten sizes, each too small; the last rerun has room, and ends with the reference's bytes."""
    small_disk = mount(home / "disk", "2m")
    source = open_source([str(big)])
    whole, folder = DatasetDir(home / "whole"), DatasetDir(small_disk / "data" / "a")
    list(prepare_dataset(source, recipe(source), whole, local_engine(1)))
    needed = sum(path.stat().st_size for path in whole.path.rglob("*.npy"))
    with pytest.raises(OutOfSpace, match=r"will take some .* are free"):
        list(prepare_dataset(source, recipe(source), folder, local_engine(1)))
    monkeypatch.setattr(prepare_module, "estimate_disk", lambda *_: Estimated(needed, 0))  # as if it had been too small
    for tenth in range(10):
        subprocess.run(["mount", "-o", f"remount,size={200_000 + needed * tenth // 11}", str(small_disk)], check=True)
        with pytest.raises(DiskFull, match=r"MB are free. The whole dataset takes some") as caught:
            list(prepare_dataset(source, recipe(source), folder, local_engine(1)))
        assert caught.value.code == 4
        assert not list(folder.path.rglob(".*draft"))
    subprocess.run(["mount", "-o", f"remount,size={2 * needed}", str(small_disk)], check=True)
    list(prepare_dataset(source, recipe(source), folder, local_engine(1)))
    assert folder.info().digest == whole.info().digest


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_bytes(big: Path, home: Path) -> None:
    """A real one, on this machine, where the system lets it start: it needs sockets and shared memory."""
    pytest.importorskip("ray")
    probe = [sys.executable, "-c", "import ray; ray.init(num_cpus=1, include_dashboard=False)"]
    try:
        subprocess.run(probe, check=True, capture_output=True, timeout=60, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("Ray does not start here")
    source = open_source([str(big)])
    whole, scattered = DatasetDir(home / "whole"), DatasetDir(home / "scattered")
    list(prepare_dataset(source, recipe(source, dedup=True), whole, local_engine(1)))
    list(prepare_dataset(source, recipe(source, dedup=True), scattered, ray_engine(2)))
    assert scattered.info().digest == whole.info().digest
    (big / "13.txt").write_bytes(b"\xff" * 370_000)
    source = open_source([str(big)])
    with pytest.raises(DataError, match=r"13\.txt is not UTF-8"):
        list(prepare_dataset(source, recipe(source), DatasetDir(home / "bad"), ray_engine(2)))
