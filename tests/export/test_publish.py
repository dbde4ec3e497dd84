"""Nothing that people add to a folder of exports is lost, and nothing is half replaced: `inference/publish.py` sees to it."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llamactl.checkpoint.format import State
from llamactl.errors import UsageError, WriteFailed
from llamactl.export import gguf
from llamactl.export import huggingface as export_huggingface
from llamactl.export.publish import LIST, name_export
from llamactl.storage import atomic
from llamactl.tokenizer import bpe
from tests.export.test_exports import SHAPE, save

Edit = Callable[[Path], object]

STATE = State(step=7, tokens=0, seconds=0.0)


@pytest.fixture
def saved(home: Path) -> Path:
    return save(SHAPE, bpe.byte_tokenizer())


def contents(folder: Path) -> dict[str, str]:
    """Each path below a folder with what it is: the digest of a file, the target of a link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = str(path.readlink()) if path.is_symlink() else "" if path.is_dir() else "fifo" if path.is_fifo() else None
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if kind is None else kind
    return found


def nest(folder: Path) -> None:
    (folder / "eval" / "deep").mkdir(parents=True)
    (folder / "eval" / "deep" / "scores.json").write_text("{}")


ADDITIONS: dict[str, Edit] = {
    "notes": lambda folder: (folder / "notes.md").write_text("mine"),
    "a hidden file": lambda folder: (folder / ".gitattributes").write_text("*.safetensors lfs"),
    "a folder": nest,
    "a link": lambda folder: (folder / "latest").symlink_to("/etc/hostname"),
    "a link to nothing": lambda folder: (folder / "gone").symlink_to("nowhere"),
    "a FIFO": lambda folder: os.mkfifo(folder / "pipe"),
    "a file of 3 MB": lambda folder: (folder / "adapter.bin").write_bytes(bytes(range(256)) * 12_000),
    "another picture": lambda folder: (folder / "loss.png").write_bytes(b"\x89PNG mine"),
}


@pytest.mark.parametrize("add", ADDITIONS.values(), ids=ADDITIONS)
def test_hf_keeps_what_people_added(saved: Path, tmp_path: Path, add: Edit) -> None:
    folder = export_huggingface.export_hf(saved, tmp_path / "out", "bf16")
    ours = contents(folder)
    add(folder)
    added = contents(folder)
    assert export_huggingface.export_hf(saved, tmp_path / "out", "bf16") == folder
    assert contents(folder) == added != ours
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


def link(path: Path) -> None:
    """A link in the place of a file, to that file under another name."""
    path.rename(path.with_name("kept"))
    path.symlink_to("kept")


def folder_of(path: Path) -> None:
    """A folder in the place of a file."""
    path.unlink()
    path.mkdir()


def edit_and(change_list: Edit) -> Edit:
    def edit(folder: Path) -> None:
        (folder / "README.md").write_text("My model")
        change_list(folder / LIST)

    return edit


EDITS: dict[str, Edit] = {
    "the card": lambda folder: (folder / "README.md").write_text("My model"),
    "the card, and it is as long": lambda folder: (folder / "README.md").write_bytes(
        (folder / "README.md").read_bytes().replace(b"llamactl", b"LLAMACTL")
    ),
    "the config": lambda folder: (folder / "config.json").write_text("{}"),
    "the weights": lambda folder: (folder / "model.safetensors").write_bytes(b"tuned"),
    "a link": lambda folder: link(folder / "README.md"),
    "a folder": lambda folder: folder_of(folder / "tokenizer.json"),
    "an edit, and no list": edit_and(Path.unlink),
    "an edit, and a damaged list": edit_and(lambda path: path.write_text('{"files": [1]}')),
    "an edit, and a list that is a folder": edit_and(folder_of),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_hf_refuses_to_replace_what_people_edited(saved: Path, tmp_path: Path, edit: Edit) -> None:
    folder = export_huggingface.export_hf(saved, tmp_path / "out", "bf16")
    edit(folder)
    (folder / "notes").write_text("mine")
    edited = contents(folder)
    with pytest.raises(UsageError, match="edited") as caught:
        export_huggingface.export_hf(saved, tmp_path / "out", "bf16")
    assert "--out" in caught.value.fix
    assert contents(folder) == edited
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_hf_refuses_a_name_that_is_no_folder(saved: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "out" / "mine-step7-bf16"
    folder.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        folder.write_text("mine")
    else:
        folder.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    with pytest.raises(UsageError, match="not a folder"):
        export_huggingface.export_hf(saved, folder.parent, "bf16")
    assert folder.is_symlink() or folder.read_text() == "mine"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_hf_replaces_its_own_files(saved: Path, tmp_path: Path) -> None:
    """A picture that was drawn since comes in, one that is gone leaves, as it was ours."""
    picture = saved.parents[1] / "loss.png"
    folder = export_huggingface.export_hf(saved, tmp_path / "out", "f32")
    (folder / "notes").write_text("mine")
    for content in (b"\x89PNG 1", b"\x89PNG 2", b""):
        picture.write_bytes(content) if content else picture.unlink()
        export_huggingface.export_hf(saved, tmp_path / "out", "f32")
        assert ((folder / "loss.png").read_bytes() if content else b"") == content
        assert (folder / "loss.png").exists() == ("loss.png" in (folder / "README.md").read_text()) == bool(content)
        assert (folder / "notes").read_text() == "mine"


def test_hf_takes_over_an_export_without_a_list(saved: Path, tmp_path: Path) -> None:
    """As versions before wrote them: nothing is lost where the bytes are the same."""
    folder = export_huggingface.export_hf(saved, tmp_path / "out", "f32")
    (folder / LIST).unlink()
    export_huggingface.export_hf(saved, tmp_path / "out", "f32")
    assert (folder / LIST).exists()


@pytest.mark.parametrize("place", ["weights", "card", "check", "exchange"])
def test_an_interrupted_export_leaves_the_old_one(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = export_huggingface.export_hf(saved, tmp_path / "out", "f32")
    (folder / "notes").write_text("mine")
    (saved.parents[1] / "loss.png").write_bytes(b"\x89PNG")
    before = contents(folder)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    module, name = {
        "weights": (export_huggingface, "split_into_files"), "card": (export_huggingface, "card"),
        "check": (export_huggingface, "check"),
        "exchange": (atomic, "exchange_folders"),
    }[place]  # fmt: skip
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, name, interrupt)
        export_huggingface.export_hf(saved, tmp_path / "out", "f32")
    assert contents(folder) == before
    export_huggingface.export_hf(saved, tmp_path / "out", "f32")
    assert (folder / "loss.png").exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


@pytest.mark.parametrize("linux", [True, False])
def test_folders_are_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linux: bool) -> None:
    if not linux:
        monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    atomic.exchange_folders(tmp_path / "a", tmp_path / "b")
    assert contents(tmp_path)["a/file"] == hashlib.sha256(b"b").hexdigest()
    assert contents(tmp_path)["b/file"] == hashlib.sha256(b"a").hexdigest()
    assert len(list(tmp_path.iterdir())) == 2


def test_each_gguf_has_a_modelfile_of_its_own(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = [gguf.export_gguf(saved, out, kind) for kind in ("f32", "f16", "q8_0")]
    assert {path.name for path in out.iterdir()} == {
        LIST,
        *(f"{file.stem}{end}" for file in files for end in (".gguf", ".Modelfile")),
    }
    for file in files:
        assert f"FROM ./{file.name}\n" in gguf.modelfile_path(file).read_text()


def of_another_program(file: Path) -> None:
    file.write_bytes(b"GGUF")
    (file.parent / LIST).unlink()


GGUF_EDITS: dict[str, Edit] = {
    "the Modelfile": lambda file: file.with_suffix(".Modelfile").write_text("FROM ./x\nSYSTEM You are a pirate."),
    "the model": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "the model of another program": of_another_program,
    "a folder": folder_of,
    "a link": link,
}


@pytest.mark.parametrize("edit", GGUF_EDITS.values(), ids=GGUF_EDITS)
def test_gguf_refuses_to_replace_what_people_edited(saved: Path, tmp_path: Path, edit: Edit) -> None:
    file = gguf.export_gguf(saved, tmp_path / "out", "f16")
    edit(file)
    edited = contents(file.parent)
    with pytest.raises(UsageError, match="edited"):
        gguf.export_gguf(saved, tmp_path / "out", "f16")
    assert contents(file.parent) == edited


def test_gguf_replaces_its_own_files_and_no_others(saved: Path, tmp_path: Path) -> None:
    """Another model under the same name and step, as after `runs remove`."""
    file = gguf.export_gguf(saved, tmp_path / "out", "f16")
    (file.parent / "Modelfile").write_text("mine")
    first = file.read_bytes()
    atomic.remove_folder(saved.parents[1])
    again = gguf.export_gguf(save(SHAPE, bpe.byte_tokenizer(), seed=2), tmp_path / "out", "f16")
    assert again == file
    assert file.read_bytes() != first
    assert (file.parent / "Modelfile").read_text() == "mine"
    assert sorted(path.name for path in file.parent.iterdir()) == sorted(
        [LIST, "Modelfile", file.name, gguf.modelfile_path(file).name]
    )


@pytest.mark.parametrize("export", [gguf.export_gguf, export_huggingface.export_hf])
def test_a_folder_that_can_not_be_written_is_an_error_with_words(
    saved: Path, tmp_path: Path, export: Callable[[Path, Path, str], Path]
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteFailed):
        export(saved, tmp_path / "file", "f32")
    with pytest.raises(WriteFailed):
        export(saved, tmp_path / "file" / "below", "f32")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("mine", "mine-step7-f32"),
        ("my model\n(2)", "my-model-2--step7-f32"),
        ("-rf", "rf-step7-f32"),
        ("日本", "model-step7-f32"),
    ],
)
def test_a_name_needs_no_quotes(tmp_path: Path, run: str, name: str) -> None:
    assert name_export(tmp_path / run / "checkpoints" / "step-00000007", STATE, "f32") == name
    assert name_export(Path("/mnt"), STATE, "f32") == "mnt-step7-f32"
    assert name_export(Path("/"), STATE, "f32") == "model-step7-f32"
