"""One dataset, one truth: a piece counts only for what it was made from.

`pieces.Origin` is the one place that says what a piece is made from, `seal.seal_dataset` the one that calls a dataset complete,
and `seal.check_complete` the one that says whether it is what was asked for.
"""

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pytest

from llamactl import cli
from llamactl.corpus import inputs, pieces, seal
from llamactl.corpus import prepare as preparing
from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.shards import ShardWriter
from llamactl.corpus.verify import check_dataset
from llamactl.storage import atomic, disk, locks
from llamactl.tokenizer.bpe import Tokenizer, train_bpe
from tests.processes import forked, status

Prepare = Callable[..., tuple[int, str]]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Some pieces of text, which are small here."""
    monkeypatch.setattr("llamactl.corpus.sources.SMALLEST_PIECE", 20_000)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(24):
        words = " ".join(f"word{(number * 7919 + k * 104729) % 977}" for k in range(300))
        (folder / f"{number:02d}.txt").write_text(words, "utf-8")
    return folder


@pytest.fixture
def prepare(texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Run `llamactl prepare` on the texts, in this process; gives its exit code and all that it printed."""

    def prepare(*words: str, tokenizer: str = "bytes") -> tuple[int, str]:
        line = ["llamactl", "prepare", str(texts), "--workers", "1", "--tokenizer", tokenizer, *words]
        monkeypatch.setattr("sys.argv", line)
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    return prepare


def bpe(path: Path, text: str) -> Path:
    """A tokenizer.json of 260 ids, learned from a text."""
    path.write_text(train_bpe(iter([text * 50]), 260).description, "utf-8")
    return path


def sealed(name: str = "texts") -> DatasetDir:
    folder = DatasetDir.from_name(name)
    assert not [file for file, damage in check_dataset(folder) if damage]
    assert sorted(path.name for path in folder.path.iterdir()) == ["dataset.json", "tokenizer.json", "train", "val"]
    return folder


def fresh_digest(prepare: Prepare, tokenizer: str = "bytes") -> str:
    """The digest of the same prepared in one go."""
    assert prepare("--name", "fresh", tokenizer=tokenizer)[0] == 0
    return sealed("fresh").info().digest


# Inputs


def other_letters(path: Path) -> None:
    path.write_bytes(path.read_bytes().translate(bytes.maketrans(b"adorw", b"bepsx")))


def with_old_times(path: Path) -> None:
    """As `touch -d` does after an edit."""
    before = path.stat()
    other_letters(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def copied_over(path: Path) -> None:
    """As `cp -p` does with a file of the same size and times."""
    twin = path.with_suffix(".copy")
    shutil.copy2(path, twin)
    with_old_times(twin)
    twin.replace(path)


def one_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def longer(path: Path) -> None:
    path.write_text(path.read_text("utf-8") + " more", "utf-8")


def gone(path: Path) -> None:
    path.unlink()


def added(path: Path) -> None:
    path.with_name("07b.txt").write_text("another one", "utf-8")


def renamed(path: Path) -> None:
    path.rename(path.with_name("07b.txt"))


EDITS = {edit.__name__: edit for edit in (other_letters, with_old_times, copied_over, one_byte, longer, gone, added, renamed)}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_input_is_named_and_a_sealed_dataset_kept(edit: str, texts: Path, prepare: Prepare) -> None:
    assert prepare()[0] == 0
    digest = sealed().info().digest
    assert "was complete already" in prepare()[1]
    EDITS[edit](texts / "07.txt")
    code, told = prepare()
    assert code == 3
    assert "07.txt" in told or "07b.txt" in told
    assert "--name" in told
    assert "already, made from other inputs" in told
    assert "was complete already" not in told
    assert sealed().info().digest == digest
    fresh = fresh_digest(prepare)
    assert fresh != digest


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_between_two_calls_is_named_and_its_piece_made_again(edit: str, texts: Path, prepare: Prepare) -> None:
    assert prepare("--piece", "1/2")[0] == 0
    EDITS[edit](texts / "07.txt")
    code, told = prepare()
    assert code == 0, told
    assert "are made again" in told
    assert sealed().info().digest == fresh_digest(prepare)


def test_the_times_of_inputs_decide_nothing(texts: Path, prepare: Prepare) -> None:
    assert prepare("--piece", "1/2")[0] == 0
    for path in texts.iterdir():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        os.utime(path, (0, 0))
    code, told = prepare()
    assert code == 0
    assert "are made again" not in told
    os.utime(texts / "07.txt", (9, 9))
    assert "was complete already" in prepare()[1]


def test_shares_of_different_inputs_are_not_sealed(texts: Path, prepare: Prepare) -> None:
    assert prepare("--piece", "1/2")[0] == 0
    other_letters(texts / "01.txt")
    assert prepare("--piece", "2/2")[0] == 0
    code, told = prepare("--finish")
    assert code == 3
    assert "01.txt changed" in told
    assert not DatasetDir.from_name("texts").info_path.exists()


def test_many_inputs_are_listed_in_groups(texts: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MOST_LISTED", 5)
    assert prepare()[0] == 0
    listed = sealed().info().inputs
    assert listed is not None
    assert len(listed.files) == 5
    one_byte(texts / "11.txt")
    code, told = prepare()
    assert code == 3
    assert "10.txt to 14.txt" in told


def test_duplicates_depend_on_the_other_pieces(texts: Path, prepare: Prepare) -> None:
    shutil.copy(texts / "00.txt", texts / "23.txt")
    assert prepare("--dedup", "--piece", "1/1", "--name", "d")[0] == 0  # a share of one is all, which is sealed
    assert sealed("d").info().skipped == {"duplicate": 1}
    assert prepare("--dedup", "--piece", "2/2")[0] == 0
    other_letters(texts / "00.txt")
    assert prepare("--dedup")[0] == 0
    assert sealed().info().skipped == {}


# Tokenizers


def test_two_tokenizers_never_come_together(tmp_path: Path, prepare: Prepare) -> None:
    """The issue's own case: another file under the same path between a share and the rest."""
    path = str(bpe(tmp_path / "t.json", "the cat sat"))
    assert prepare("--piece", "1/2", tokenizer=path)[0] == 0
    bpe(tmp_path / "t.json", "xylophones for sale")
    code, told = prepare(tokenizer=path)
    assert code == 0
    assert "are made again: It was made with a different tokenizer" in told
    assert sealed().info().digest == fresh_digest(prepare, path)


def test_shares_with_another_tokenizer_are_refused(tmp_path: Path, prepare: Prepare) -> None:
    path = str(bpe(tmp_path / "t.json", "the cat sat"))
    assert prepare("--piece", "1/2", tokenizer=path)[0] == 0
    bpe(tmp_path / "t.json", "xylophones for sale")
    for words in (("--piece", "2/2"), ("--finish",)):
        code, told = prepare(*words, tokenizer=path)
        assert code == 3, words
        assert "t.json" in told
    bpe(tmp_path / "t.json", "the cat sat")
    assert prepare("--piece", "2/2", tokenizer=path)[0] == 0
    assert prepare("--finish", tokenizer=path)[0] == 0
    assert sealed().info().digest == fresh_digest(prepare, path)


def test_a_tokenizer_replaced_in_the_folder_is_noticed(tmp_path: Path, prepare: Prepare) -> None:
    for words in (("--piece", "1/2"), ("--piece", "2/2")):
        assert prepare(*words, tokenizer="bpe:260")[0] == 0
    bpe(DatasetDir.from_name("texts").tokenizer_path, "xylophones for sale")
    code, told = prepare("--finish", tokenizer="bpe:260")
    assert code == 3
    assert "a different tokenizer" in told
    assert prepare(tokenizer="bpe:260")[0] == 0  # learns it again, and all pieces are of that
    assert sealed().info().digest == fresh_digest(prepare, "bpe:260")


def test_another_version_of_the_library_that_learns_is_noticed(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepare("--piece", "1/2", tokenizer="bpe:260")[0] == 0
    other = train_bpe(iter(["xylophones for sale" * 50]), 260)

    def learn(texts: Iterator[str], size: int) -> Generator[int, None, Tokenizer]:
        yield 0
        return other

    monkeypatch.setattr("llamactl.tokenizer.bpe.learn_bpe", learn)
    code, told = prepare(tokenizer="bpe:260")
    assert code == 0
    assert "a different tokenizer" in told
    sealed()


def test_another_version_of_the_code_is_noticed(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepare("--piece", "1/2")[0] == 0
    monkeypatch.setattr(pieces, "FORMAT", pieces.FORMAT + 1)
    code, told = prepare("--finish")
    assert code == 3
    assert "made by a different version" in told
    assert "made by a different version" in prepare()[1]
    sealed()


def test_a_sealed_dataset_is_compared_with_the_tokenizer_as_it_is_now(tmp_path: Path, prepare: Prepare) -> None:
    path = str(bpe(tmp_path / "t.json", "the cat sat"))
    assert prepare(tokenizer=path)[0] == 0
    assert "was complete already" in prepare(tokenizer=path)[1]
    bpe(tmp_path / "t.json", "xylophones for sale")
    code, told = prepare(tokenizer=path)
    assert code == 3
    assert "t.json is now" in told
    sealed()


# Receipts and shards


def zeroed(folder: DatasetDir) -> None:
    path = folder.shard("train", 0)
    path.write_bytes(path.read_bytes()[:128] + bytes(path.stat().st_size - 128))


def cut_short(folder: DatasetDir) -> None:
    os.truncate(folder.shard("train", 0), 1_000)


def removed(folder: DatasetDir) -> None:
    folder.shard("train", 0).unlink()


def swapped(folder: DatasetDir) -> None:
    first, second = folder.shard("train", 0), folder.shard("train", 2)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def linked(folder: DatasetDir) -> None:
    path = folder.shard("train", 0)
    path.rename(folder.path.parent / "elsewhere.npy")
    path.symlink_to(folder.path.parent / "elsewhere.npy")


def a_pipe(folder: DatasetDir) -> None:
    folder.shard("train", 0).unlink()
    os.mkfifo(folder.shard("train", 0))


def garbage_receipt(folder: DatasetDir) -> None:
    folder.receipt(0).write_text('{"job": "of an older version"}')


def foreign_receipt(folder: DatasetDir) -> None:
    shutil.copy(folder.receipt(2), folder.receipt(0))


DAMAGES = {
    damage.__name__: damage
    for damage in (zeroed, cut_short, removed, swapped, linked, a_pipe, garbage_receipt, foreign_receipt)
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_piece_is_not_sealed_but_made_again(damage: str, prepare: Prepare) -> None:
    assert prepare("--piece", "1/2")[0] == 0
    assert prepare("--piece", "2/2")[0] == 0
    DAMAGES[damage](DatasetDir.from_name("texts"))
    code, told = prepare("--finish")
    assert code == 3
    assert "0" in told
    code, told = prepare()
    assert code == 0
    assert "are made again" in told
    assert sealed().info().digest == fresh_digest(prepare)


def test_the_seal_counts_the_bytes_once_more(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that loses its end after its piece was made."""
    checked = seal._check_receipt

    def shrinking(job: pieces.Job, receipt: pieces.Receipt, dtype: str) -> None:
        os.truncate(job.folder.path / receipt.shards[0].file, 200)
        checked(job, receipt, dtype)

    monkeypatch.setattr(seal, "_check_receipt", shrinking)
    code, told = prepare()
    assert code == 3
    assert "train/00000.npy is damaged" in told
    assert not DatasetDir.from_name("texts").info_path.exists()


def test_what_is_on_the_disk_must_be_what_was_written(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros where another process wrote, before the shard has its name."""
    read_back = ShardWriter._read_back

    def overwritten(writer: ShardWriter) -> str:
        os.pwrite(writer._file.fileno(), bytes(64), 4_096)
        return read_back(writer)

    monkeypatch.setattr(ShardWriter, "_read_back", overwritten)
    code, told = prepare()
    assert code == 4
    assert "does not hold what was written" in told
    assert not list(DatasetDir.from_name("texts").path.rglob("*.npy"))


# Two at once


def test_a_dataset_sealed_while_the_lock_was_waited_for_is_kept(
    texts: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one has looked for the seal already when the first one seals."""
    estimate = preparing.estimate_disk
    state: dict[str, bytes] = {}

    def while_another_seals(*words: object) -> object:
        monkeypatch.setattr(preparing, "estimate_disk", estimate)
        assert status(forked(lambda: exit_of(prepare("--name", "texts")))) == 0
        state["sealed"] = DatasetDir.from_name("texts").info_path.read_bytes()
        return estimate(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(preparing, "estimate_disk", while_another_seals)
    code, told = prepare()
    assert code == 0
    assert "was complete already" in told
    assert sealed().info_path.read_bytes() == state["sealed"]


def exit_of(result: tuple[int, str]) -> None:
    if result[0]:
        os._exit(result[0])


@pytest.mark.parametrize(
    ("shared", "words", "expected"),
    [
        (False, (), 7),
        (False, ("--piece", "1/2"), 7),
        (False, ("--finish",), 7),
        (True, (), 7),
        (True, ("--finish",), 7),
        (True, ("--piece", "1/2"), 0),
    ],
)
def test_only_shares_run_together(shared: bool, words: tuple[str, ...], expected: int, prepare: Prepare) -> None:
    with locks.hold_lock(DatasetDir.from_name("texts").lock_path, shared=shared):
        code, told = prepare(*words)
    assert code == expected, told
    assert not DatasetDir.from_name("texts").info_path.exists()


def test_a_piece_that_another_process_makes_is_waited_for(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PATIENCE", 0.2)
    with locks.hold_lock(DatasetDir.from_name("texts").piece_lock(1)):
        assert prepare("--piece", "2/2")[0] == 7
    assert prepare("--piece", "2/2")[0] == 0


def test_a_complete_dataset_may_be_read_only(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of another person, or on another disk: nothing is written to say that it is complete."""
    assert prepare()[0] == 0

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    for module in (atomic, disk, locks):
        monkeypatch.setattr(module, "make_dirs", refuse)
    code, told = prepare()
    assert code == 0
    assert "was complete already" in told


def test_datasets_from_before_inputs_were_recorded_still_open(prepare: Prepare) -> None:
    assert prepare()[0] == 0
    folder = sealed()
    tree = json.loads(folder.info_path.read_text())
    digest = tree["digest"]
    del tree["inputs"]
    atomic.write_file(folder.info_path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    assert sealed().info().digest == digest
    assert np.concatenate(sealed().open().train).size
    assert "was complete already" in prepare()[1]
