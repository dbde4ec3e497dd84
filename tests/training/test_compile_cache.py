"""Compiled code is kept for the next run, and never read after a process was killed while it compiled."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamactl.model.native_build import UNUSED
from llamactl.storage.locks import hold_lock
from llamactl.training.compile_cache import MARK, VARIABLE, compiled_code_folder, guard_compilation
from tests.processes import forked, status


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = os.environ.pop(VARIABLE, None)
    yield
    os.environ.pop(VARIABLE, None)
    if before is not None:
        os.environ[VARIABLE] = before


def compile_something(name: str) -> None:
    (compiled_code_folder() / name).touch()


def kept() -> set[str]:
    return {file.name for file in compiled_code_folder().iterdir()}


def test_code_is_kept_in_the_cache_folder_and_no_mark_stays() -> None:
    for name in ("first", "second"):
        with guard_compilation():
            assert os.environ[VARIABLE] == str(compiled_code_folder())
            assert any(name.startswith(MARK) for name in kept())
            compile_something(name)
    assert kept() == {"first", "second"}


@pytest.mark.parametrize("ending", ["killed", "an error", "Ctrl-C"])
def test_what_a_process_left_unfinished_is_compiled_again(ending: str) -> None:
    def leave() -> None:
        with guard_compilation():
            compile_something("half a library")
            if ending == "killed":
                os._exit(0)
            raise RuntimeError if ending == "an error" else KeyboardInterrupt

    status(forked(leave))
    assert "half a library" in kept()
    with guard_compilation():
        compile_something("whole")
    assert kept() == {"whole"}


def test_what_another_process_compiles_now_stays() -> None:
    with guard_compilation():
        compile_something("of others")
    with hold_lock(compiled_code_folder() / f"{MARK}other-1"), guard_compilation():
        compile_something("mine")
    assert {"of others", "mine"} <= kept()


def test_a_chosen_folder_is_used_as_it_is(tmp_path: Path) -> None:
    os.environ[VARIABLE] = str(tmp_path / "chosen")
    with guard_compilation():
        pass
    assert os.environ[VARIABLE] == str(tmp_path / "chosen")
    assert not compiled_code_folder().exists()


def test_pytorch_chooses_where_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "llamactl").write_text("not a folder")
    with guard_compilation():
        pass
    assert VARIABLE not in os.environ


def test_folders_that_nobody_used_for_months_are_removed() -> None:
    with guard_compilation():
        pass
    old = compiled_code_folder().with_name("compiled-of-an-older-torch")
    for folder, age in ((old, UNUSED + 60), (old.with_name("compiled-of-another-processor"), UNUSED - 60)):
        folder.mkdir()
        os.utime(folder, (folder.stat().st_mtime - age,) * 2)
    with guard_compilation():
        pass
    assert sorted(folder.name for folder in old.parent.glob("compiled-*")) == sorted(
        [compiled_code_folder().name, "compiled-of-another-processor"]
    )


@pytest.mark.slow
def test_half_a_library_is_not_loaded() -> None:
    """Loaded, it would end the process by SIGBUS, and each later one too."""
    words = """
        import os, sys, torch
        from llamactl.training.compile_cache import guard_compilation
        with guard_compilation():
            x = torch.arange(8.0)
            assert torch.compile(lambda x: x.exp() * x + 2, dynamic=False)(x).allclose(x.exp() * x + 2)
            if sys.argv[1:] == ["killed"]:
                os._exit(9)
    """
    line = [sys.executable, "-c", textwrap.dedent(words)]
    assert subprocess.run([*line, "killed"], check=False).returncode == 9
    libraries = list(compiled_code_folder().rglob("*.so"))
    assert libraries
    for library in libraries:
        os.truncate(library, 3_000)
    subprocess.run(line, check=True)
    assert list(compiled_code_folder().rglob("*.so"))
