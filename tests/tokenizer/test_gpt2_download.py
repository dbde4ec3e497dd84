"""Where GPT-2's vocabulary comes from, in which order, and what happens when it can't."""

import hashlib
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from llamactl import install_command
from llamactl.errors import DataError, NoNetwork
from llamactl.storage.home import cache_folder
from llamactl.tokenizer import gpt2_download

REAL = gpt2_download.find_vocabulary()


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache and no package has it, and the network is a closed port."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(gpt2_download, "URL", "http://127.0.0.1:1/vocab.bpe")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A loopback server that answers with `content`."""
    answer = {"content": REAL.read_bytes()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer["content"])

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(gpt2_download, "URL", f"http://127.0.0.1:{server.server_port}/vocab.bpe")
        yield answer
        server.shutdown()


def test_tiktokens_cache_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    shutil.copy(REAL, tmp_path / gpt2_download.CACHE_NAME)
    assert gpt2_download.find_vocabulary().parent == tmp_path


def test_a_damaged_file_is_named_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / gpt2_download.CACHE_NAME).write_bytes(REAL.read_bytes()[:-1])
    with pytest.raises(DataError, match=str(tmp_path)):
        gpt2_download.find_vocabulary()


def test_a_download_is_checked_and_kept(served: dict[str, bytes]) -> None:
    path = gpt2_download.find_vocabulary()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == gpt2_download.SHA256
    served["content"] = b"gone"
    assert gpt2_download.find_vocabulary() == path


def test_a_wrong_download_is_not_kept(served: dict[str, bytes]) -> None:
    served["content"] = b"<html>log in to the hotel</html>"
    with pytest.raises(NoNetwork, match="sha256"):
        gpt2_download.find_vocabulary()
    assert not (cache_folder() / gpt2_download.CACHE_NAME).exists()


def test_without_a_network_the_ways_out_are_named() -> None:
    with pytest.raises(NoNetwork) as caught:
        gpt2_download.find_vocabulary()
    assert caught.value.code == 5
    for way in (install_command("offline"), str(cache_folder()), "bpe:8192"):
        assert way in caught.value.fix
