"""Models on the Hugging Face hub: safetensors and JSON only, never code, from the cache where there is no network."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamactl.corpus.hub import PATIENCE, to_our_error
from llamactl.errors import DataError, UsageError
from llamactl.storage.records import hash_file

PREFIX = "hf:"
NAME = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
FILES = ("*.json", "*.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json")
WAYS_OUT = "Without the hub: copy the model's folder here, and give its path"


def download_model(name: str, files: Sequence[str] = FILES) -> Path:
    """Return the folder of hf:ORG/NAME or hf:ORG/NAME@REVISION in the hub's cache, downloading those `files` that it lacks.

    Large files are compared with their sha256. Raises UsageError for another form of name, NoNetwork, DataError.
    """
    from huggingface_hub import snapshot_download

    found = NAME.fullmatch(name)
    if not found:
        raise UsageError(f"{name!r} is not a model of the hub.", "", "Example: hf:HuggingFaceTB/SmolLM2-135M")
    try:
        options: dict[str, Any] = {"revision": found["revision"], "allow_patterns": list(files), "etag_timeout": PATIENCE}
        folder = Path(str(snapshot_download(found["repository"], **options)))
    except Exception as error:
        raise to_our_error(error, name.removeprefix(PREFIX), "model", WAYS_OUT) from error
    for file in sorted(folder.glob("*.safetensors")):
        # The cache calls a large file by its sha256.
        stored = file.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", stored.name) and hash_file(stored) != stored.name:
            raise DataError(
                f"{file} is damaged.", "Its sha256 is not the hub's.", f"Remove it, and run this again: rm {stored}"
            )
    return folder
