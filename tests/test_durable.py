"""Files and folders appear complete or not at all."""

import hashlib
from pathlib import Path

import pytest

from llamactl import durable
from llamactl.errors import NoRoom, UserError


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with durable.writing(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert durable.sha256(path) == hashlib.sha256(b"abc").hexdigest()
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write(path, "old")
    with pytest.raises(ZeroDivisionError), durable.writing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_its_block_ends_and_forgets_an_older_draft(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    with pytest.raises(ZeroDivisionError), durable.filling(folder) as draft:
        draft.write("a", [b"half"])
        raise ZeroDivisionError
    assert not folder.exists()
    (tmp_path / ".step.draft").mkdir()
    (tmp_path / ".step.draft" / "stale").touch()
    with durable.filling(folder) as draft:
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
    durable.remove(folder)
    assert seen[-1] == (".step.removed", False)


def test_a_full_disk_has_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(NoRoom, match="Can't write") as caught, durable.writing(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    assert caught.value.code == 4
    with pytest.raises(UserError, match="Permission denied") as denied, durable.writing(tmp_path / "file"):
        raise PermissionError(13, "Permission denied")
    assert denied.value.code == 4
