"""Files and folders appear complete or not at all."""

import errno
import hashlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamactl.errors import InUse, OutOfSpace, UserError, WriteFailed
from llamactl.storage import atomic, locks
from tests.faults import Crash, Disk, put_in_place
from tests.processes import forked, status


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic.atomic_write(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert atomic.sha256(path) == hashlib.sha256(b"abc").hexdigest()
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.write_file(path, "old")
    with pytest.raises(ZeroDivisionError), atomic.atomic_write(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_its_block_ends_and_forgets_an_older_draft(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    with pytest.raises(ZeroDivisionError), atomic.atomic_dir(folder) as draft:
        draft.write("a", [b"half"])
        raise ZeroDivisionError
    assert not folder.exists()
    (tmp_path / ".step.draft").mkdir()
    (tmp_path / ".step.draft" / "stale").touch()
    with atomic.atomic_dir(folder) as draft:
        draft.write("a", [b"wh", b"ole"])
        assert draft.hashes == {"a": hashlib.sha256(b"whole").hexdigest()}
    assert [path.name for path in folder.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [folder]


def test_removing_takes_the_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "step"
    folder.mkdir()
    (folder / "a").touch()
    seen = []
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: seen.append((path.name, folder.exists())))
    atomic.remove_folder(folder)
    assert seen[-1] == (".step.removed", False)


def refuse_with(number: int) -> Callable[..., int]:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder of the usual kind behind a link, as one on another disk."""
    disk = tmp_path / "disk"
    (disk / "train").mkdir(parents=True)
    (disk / "train" / "00000.npy").touch()
    (disk / "dataset.json").touch()
    link = tmp_path / "one"
    link.symlink_to(disk)
    return link


def test_a_link_is_removed_with_what_the_folder_holds(linked: Path) -> None:
    atomic.remove_folder(linked)
    assert not linked.is_symlink()
    assert list((linked.parent / "disk").iterdir()) == []


@pytest.mark.parametrize("call", ["shutil.rmtree", "os.unlink"])
def test_a_link_that_was_removed_in_part_is_removed_by_the_same_call(
    call: str, linked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(WriteFailed):
        patch.setattr(call, refuse_with(errno.EIO))
        atomic.remove_folder(linked)
    assert (linked / "dataset.json").exists()
    atomic.remove_folder(linked)
    assert not linked.is_symlink()


def test_what_a_link_left_over_leads_to_stays(linked: Path) -> None:
    folder = linked.with_name("two")
    folder.mkdir()
    linked.rename(linked.with_name(".two.removed"))
    atomic.remove_folder(folder)
    assert not folder.exists()
    assert (linked.parent / "disk" / "dataset.json").exists()


@pytest.mark.parametrize("call", ["pwrite", "ftruncate"])
def test_a_full_disk_keeps_nobody_from_a_lock(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, call, refuse_with(errno.ENOSPC))
    with locks.hold_lock(tmp_path / "lock"):
        assert locks.is_locked(tmp_path / "lock")


def test_a_full_disk_keeps_nobody_from_removing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "make_dirs", refuse_with(errno.ENOSPC))
    with locks.hold_removal_lock(tmp_path, tmp_path / ".pieces" / "lock"):
        with pytest.raises(InUse), locks.hold_removal_lock(tmp_path, tmp_path / ".pieces" / "lock"):
            pass
        with pytest.raises(OutOfSpace), locks.hold_lock(tmp_path / ".pieces" / "lock"):
            pass


def test_a_full_disk_has_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(OutOfSpace, match="Can't write") as caught, atomic.atomic_write(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    assert caught.value.code == 4
    with pytest.raises(UserError, match="Permission denied") as denied, atomic.atomic_write(tmp_path / "file"):
        raise PermissionError(13, "Permission denied")
    assert denied.value.code == 4


Work = Callable[[Path], None]


def rewrite(folder: Path) -> None:
    atomic.write_file(folder / "deep" / "file", b"new" * 1000)


def refill(folder: Path) -> None:
    with atomic.atomic_dir(folder / "deep" / "step") as draft:
        draft.write("a", [b"new" * 1000])
        draft.write("b", [b"new" * 1000])


def clear(folder: Path) -> None:
    atomic.remove_folder(folder / "step")


def files(folder: Path) -> dict[str, bytes]:
    """Everything that has a name of its own."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if "/." not in f"/{name}"}


def laid_out(folder: Path, content: dict[str, bytes]) -> Path:
    """A folder with some files."""
    for name, written in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(written)
    return folder


BEFORE = {"old": b"old"}
CHANGES: list[tuple[Work, dict[str, bytes], dict[str, bytes]]] = [
    (rewrite, {}, {"deep/file": b"new" * 1000}),
    (rewrite, {"deep/file": b"before"}, {"deep/file": b"new" * 1000}),
    (refill, {}, {"deep/step/a": b"new" * 1000, "deep/step/b": b"new" * 1000}),
    (clear, {"step/a": b"x", "step/b": b"y"}, {}),
]


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize(("work", "before", "after"), CHANGES)
def test_a_power_cut_leaves_the_old_or_the_new(
    work: Work, before: dict[str, bytes], after: dict[str, bytes], names: bool, tmp_path: Path
) -> None:
    """At any operation, whatever was not synced being lost; what has returned is there for good."""
    for number in itertools.count():
        folder = laid_out(tmp_path / str(number), BEFORE | before)
        disk, cut = Disk(number, "crash"), False
        with put_in_place(disk):
            try:
                work(folder)
            except Crash:
                cut = True
        disk.lose(names, folder)
        assert files(folder) == BEFORE | after or (cut and files(folder) == BEFORE | before), disk.log
        if not cut:
            break
    assert number > 3


@pytest.mark.parametrize("how", ["EIO", "ENOSPC"])
@pytest.mark.parametrize(("work", "before", "after"), CHANGES)
def test_a_failure_leaves_the_old_or_the_new_and_no_draft(
    work: Work, before: dict[str, bytes], after: dict[str, bytes], how: str, tmp_path: Path
) -> None:
    for number in itertools.count():
        folder = laid_out(tmp_path / str(number), BEFORE | before)
        failed = False
        with put_in_place(Disk(number, how)):
            try:
                work(folder)
            except OutOfSpace as error:
                failed = error.code == 4
        assert files(folder) in ([BEFORE | after] if not failed else [BEFORE | before, BEFORE | after])
        assert not list(folder.rglob(".*.draft"))
        if not failed:
            break
    assert number > 3


def test_a_folder_takes_the_place_of_one_that_is_there(tmp_path: Path) -> None:
    """As a checkpoint takes the place of a damaged one, after the run went on from the one before."""
    for content in (b"old", b"new"):
        with atomic.atomic_dir(tmp_path / "step") as draft:
            draft.write(content.decode(), [content])
    assert files(tmp_path) == {"step/new": b"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    for name in (".a.draft", ".b.removed", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    atomic.remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.slow
def test_of_four_that_start_at_once_one_goes_on(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    for _ in range(20):
        gate_in, gate_out = os.pipe()
        report_in, report_out = os.pipe()

        def work(gate: int = gate_in, report: int = report_out) -> None:
            os.read(gate, 1)
            try:
                with locks.hold_lock(lock):
                    time.sleep(0.4)
            except InUse as error:
                os.write(report, f"{error.why}\n".encode())
                raise

        pids = [forked(work) for _ in range(4)]
        os.write(gate_out, b"1234")
        codes = {pid: status(pid) for pid in pids}
        assert sorted(codes.values()) == [0, 7, 7, 7]
        winner = next(pid for pid, code in codes.items() if code == 0)
        assert os.read(report_in, 1000).decode().splitlines() == [f"Process {winner} is writing there."] * 3
        for descriptor in (gate_in, gate_out, report_in, report_out):
            os.close(descriptor)


def test_a_lock_whose_holder_was_killed_is_free(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    def work() -> None:
        with locks.hold_lock(lock):
            os.kill(os.getpid(), signal.SIGKILL)

    assert status(forked(work)) == -signal.SIGKILL
    assert lock.read_text()
    assert not locks.is_locked(lock)
    with locks.hold_lock(lock):
        assert locks.is_locked(lock)
        with pytest.raises(InUse) as caught, locks.hold_lock(lock):
            pass
        assert caught.value.code == 7
    assert lock.read_text() == ""
    assert not locks.is_locked(tmp_path / "nothing")
