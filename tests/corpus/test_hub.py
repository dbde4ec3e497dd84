"""Datasets of the hub, read by the real client libraries from a stand-in on loopback.

huggingface_hub and datasets read HF_ENDPOINT and HF_HOME once, when they are imported, and copy them about. So each
test asks in a process of its own, with an environment of its own; the one of the other tests is never touched.
"""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.hub import WAITS
from llamactl.corpus.sources import open_source
from llamactl.errors import UserError
from tests.corpus.hub_server import Files, Hub, running

SKYLION, MIRROR = "Skylion007/openwebtext", "dylanebert/openwebtext"
NOWHERE = "http://127.0.0.1:1"  # nothing listens on this port, so connections are refused
CONFIGS = b"""---
configs:
- config_name: english
  data_files: en/*.parquet
- config_name: deutsch
  data_files: de/*.parquet
---
"""
LANGUAGES = {"README.md": CONFIGS}

Ask = Callable[..., dict[str, Any]]


def answer(word: str, text_column: str) -> dict[str, Any]:
    """What a source holds, or the error for a person; runs in the process that knows the stand-in."""
    try:
        source = open_source([word])
        documents = [list(source.documents(piece, text_column)) for piece in range(len(source.pieces))]
    except UserError as error:
        return {"error": type(error).__name__, "code": error.code, "what": error.what, "why": error.why, "fix": error.fix}
    return {"name": source.name, "inputs": source.inputs, "documents": documents}


def environment(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process whose hub is at `endpoint` and whose files are below `home`."""
    mine = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HUGGING"))}
    return mine | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "LLAMACTL_HOME": str(home),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "USE_TORCH": "0",  # datasets would import it, which takes longer than all the rest
        # Whatever does not go to this machine fails at once.
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"), NOWHERE),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
    }


def run(endpoint: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder, with its hub at `endpoint`."""
    folder = home / "here"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", *words]
    return subprocess.run(
        command, cwd=folder, env=environment(endpoint, home), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Ask:
    """Open a source where the hub is the stand-in, and read it."""

    def ask(word: str, text_column: str = "text") -> dict[str, Any]:
        done = run(hub.endpoint, tmp_path, __name__, word, text_column)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return ask


def parquet(*documents: str | None) -> bytes:
    """A parquet file with a column of text, in row groups of two."""
    file = io.BytesIO()
    table = pyarrow.table({"number": range(len(documents)), "text": pyarrow.array(documents, pyarrow.string())})
    pyarrow.parquet.write_table(table, file, row_group_size=2)
    return file.getvalue()


def script(marker: Path) -> Files:
    """A dataset of the old kind: code that would leave a mark if it ran."""
    return {"README.md": b"# Web pages\n", "openwebtext.py": f"open({str(marker)!r}, 'w')\n".encode()}


def test_every_parquet_file_is_a_piece_and_the_commit_is_pinned(hub: Hub, ask: Ask) -> None:
    first, second = ["a", "b", None, "d", "e"], ["f", "g\n\nä€😀", ""]
    files = {"data/train-00000-of-00002.parquet": parquet(*first), "data/train-00001-of-00002.parquet": parquet(*second)}
    commit = hub.add(SKYLION, files | {"README.md": b"---\nlicense: cc0-1.0\n---\n"})
    got = ask("openwebtext")
    assert got == {"name": "openwebtext", "inputs": f"hf:{SKYLION}@{commit}:", "documents": [first, second]}
    assert [request for request in hub.requests if "/main" in request] == [f"GET /api/datasets/{SKYLION}/revision/main"]


def test_where_there_is_only_a_script_the_converted_files_are_read(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hub.add(SKYLION, script(marker))
    commit = hub.add(SKYLION, {"plain_text/train/0000.parquet": parquet("a", "b", "c")}, "refs/convert/parquet")
    hub.add(MIRROR, {"train.parquet": parquet("not this one")})
    got = ask("openwebtext")
    assert (got["inputs"], got["documents"]) == (f"hf:{SKYLION}@{commit}:", [["a", "b", "c"]])
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("first", ["missing", "script", "empty"])
def test_where_there_is_nothing_to_read_the_mirror_is_read(first: str, hub: Hub, ask: Ask, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    if first != "missing":
        hub.add(SKYLION, script(marker) if first == "script" else {"README.md": b"# Soon\n"})
    commit = hub.add(MIRROR, {"plain_text/train-00000-of-00001.parquet": parquet("a", "b")})
    got = ask("openwebtext")
    assert (got["inputs"], got["documents"]) == (f"hf:{MIRROR}@{commit}:", [["a", "b"]])
    assert not marker.exists()


@pytest.mark.slow
def test_a_config_is_picked_by_name(hub: Hub, ask: Ask) -> None:
    commit = hub.add("org/name", LANGUAGES | {"en/1.parquet": parquet("Hello"), "de/1.parquet": parquet("Hallo")})
    got = ask("hf:org/name:deutsch")
    assert got == {"name": "name-deutsch", "inputs": f"hf:org/name@{commit}:deutsch", "documents": [["Hallo"]]}


@pytest.mark.slow
@pytest.mark.parametrize("config", ["", ":french"])
def test_the_configs_are_named_when_none_fits(config: str, hub: Hub, ask: Ask) -> None:
    hub.add("org/name", LANGUAGES | {"en/1.parquet": parquet("Hello"), "de/1.parquet": parquet("Hallo")})
    got = ask(f"hf:org/name{config}")
    assert got["error"] == "DataError"
    assert "['english', 'deutsch']" in got["why"]


@pytest.mark.slow
def test_the_columns_are_named_when_none_fits(hub: Hub, ask: Ask) -> None:
    hub.add("org/name", {"train.parquet": parquet("a", "b")})
    got = ask("hf:org/name", "words")
    assert (got["error"], got["what"]) == ("DataError", "org/name has no column 'words'.")
    assert got["why"] == "It has: number, text."
    assert "--text-column" in got["fix"]


@pytest.mark.slow
def test_a_damaged_file_is_not_called_a_network_failure(hub: Hub, ask: Ask) -> None:
    hub.add("org/name", {"train-1.parquet": parquet("a"), "train-2.parquet": parquet("b")[:-9]})
    got = ask("hf:org/name")
    assert (got["error"], got["why"][:10]) == ("DataError", "org/name: ")


@pytest.mark.parametrize(("file", "status"), [("train-2.parquet", 403), ("README.md", 501)])
def test_a_refusal_later_on_is_a_network_failure(file: str, status: int, hub: Hub, ask: Ask) -> None:
    hub.add("org/name", {"README.md": b"# Web\n", "train-1.parquet": parquet("a"), "train-2.parquet": parquet("b")})
    hub.refuse(file, status)
    got = ask("hf:org/name")
    assert got["error"] == "NoNetwork"
    assert str(status) in got["why"]


@pytest.mark.slow
@pytest.mark.parametrize("mishap", ["429", "500", "503", "reset", "stall", "cut"])
def test_what_passes_is_waited_for_and_no_row_is_lost_or_doubled(mishap: str, hub: Hub, ask: Ask) -> None:
    rows = [f"document {number} " + "x" * 3_000 for number in range(40)]
    hub.add("org/name", {"train-1.parquet": parquet("a"), "train-2.parquet": parquet(*rows)})
    hub.mishaps["GET /datasets/org/name/resolve"] = [mishap, "", mishap]
    got = ask("hf:org/name")
    assert got.get("documents") == [["a"], rows], got
    assert hub.mishaps["GET /datasets/org/name/resolve"] == []


@pytest.mark.parametrize(("status", "why"), [(500, "500 Internal Server Error"), (401, "401 Unauthorized"), (200, "login")])
def test_a_hub_that_does_not_answer_as_one_is_a_network_failure(status: int, why: str, hub: Hub, ask: Ask) -> None:
    hub.add(MIRROR, {"train.parquet": parquet("not this one: the first may be back in a minute")})
    hub.refuse(SKYLION, status)
    got = ask("openwebtext")
    assert (got["error"], got["code"]) == ("NoNetwork", 5)
    assert why in got["why"]
    assert len(hub.requests) == 1


@pytest.mark.parametrize("word", ["hf:org/nothing", "hf:not a name"])
def test_a_name_that_the_hub_does_not_know_is_bad_data(word: str, ask: Ask) -> None:
    got = ask(word)
    assert (got["error"], got["code"]) == ("DataError", 3)
    assert word.removeprefix("hf:") in got["why"]


def test_a_folder_of_the_same_name_is_never_read_in_its_place(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    hub.add("org/name", {"train.parquet": parquet("the hub's")})
    folder = tmp_path / "here" / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "train.parquet").write_bytes(parquet("another"))
    got = ask("hf:org/name")
    assert got["error"] == "DataError"
    assert "llamactl prepare org/name" in got["why"]


def test_an_old_download_is_never_read_in_its_place(hub: Hub, ask: Ask, tmp_path: Path) -> None:
    old = tmp_path / "huggingface" / "datasets" / "Skylion007___openwebtext" / "plain_text" / "1.0.0" / "0123456789abcdef"
    old.mkdir(parents=True)
    (old / "dataset_info.json").write_text("{}")
    hub.add(SKYLION, script(tmp_path / "marker"))
    commit = hub.add(MIRROR, {"train.parquet": parquet("a")})
    assert ask("openwebtext")["inputs"] == f"hf:{MIRROR}@{commit}:"


def test_without_a_network_two_ways_out_are_shown_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    done = run(NOWHERE, tmp_path, "llamactl", "prepare", "openwebtext")
    assert time.monotonic() - started < sum(WAITS)  # which it would wait for a hub that fails
    assert done.returncode == 5, done.stderr
    told = " ".join(done.stderr.split())
    assert "can't be reached" in told
    assert "llamactl prepare sample" in told
    assert "llamactl prepare FILES" in told


@pytest.mark.slow
def test_prepare_keeps_every_document(hub: Hub, tmp_path: Path) -> None:
    first, second = ["California is", "a state", "ä€😀"], ["of the\nUnited States", "", "of America"]
    commit = hub.add("org/name", {"train-1.parquet": parquet(*first), "train-2.parquet": parquet(*second)})
    words = ["--tokenizer", "bytes", "--workers", "1", "--val-fraction", "1e-9"]
    done = run(hub.endpoint, tmp_path, "llamactl", "prepare", "hf:org/name", *words)
    assert done.returncode == 0, done.stderr
    made = DatasetDir(tmp_path / "data" / "name").open()
    assert made.info.recipe.inputs == f"hf:org/name@{commit}:"
    assert made.info.skipped == {"empty": 1}
    documents = [text for shard in (*made.val, *made.train) for text in split(shard.tolist(), made.tokenizer.end)]
    assert [made.tokenizer.decode(ids) for ids in documents] == [text for text in first + second if text]


def test_conversations_are_rows_of_the_train_split_at_a_commit(hub: Hub, tmp_path: Path) -> None:
    """Read by a process that makes a dataset of them, as `llamactl finetune` does."""
    file = io.BytesIO()
    said = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}] for n in range(5)]
    pyarrow.parquet.write_table(pyarrow.table({"messages": said, "source": ["made up"] * 5}), file)
    commit = hub.add("org/chats", {"data/train-0.parquet": file.getvalue()})
    code = "import sys, json; from llamactl.corpus.rows import open_rows; rows = open_rows(['hf:org/chats']); "
    code += "print(json.dumps([rows.name, rows.pinned, [row['messages'] for row in rows]]))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, env=environment(hub.endpoint, tmp_path), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["chats", f"hf:org/chats@{commit}:", said]


def split(tokens: list[int], end: int) -> list[list[int]]:
    """The documents of a shard, each without its end."""
    ends = [place for place, token in enumerate(tokens) if token == end]
    return [tokens[start:stop] for start, stop in zip([0, *(place + 1 for place in ends)], ends, strict=False)]


if __name__ == "__main__":
    print(json.dumps(answer(*sys.argv[1:])), flush=True)
    os._exit(0)  # under load, threads of the libraries below datasets abort now and then while Python shuts down
