"""Find the text that a model is evaluated on: a dataset, or the documents of files."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llamactl.corpus.dataset import DatasetDir


def find_dataset(path: Path, data: str) -> "DatasetDir":
    """Find the dataset of this name, else that of the run of a checkpoint, else the newest; raises DataError."""
    from llamactl.corpus.dataset import DatasetDir
    from llamactl.runs.run_dir import data_settings

    return DatasetDir.from_name(data or data_settings(path).name)


def name_texts(texts: "Sequence[str]") -> str:
    """Return what several files are called together."""
    return texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} more"


def read_documents(texts: list[str], column: str) -> "Iterator[str]":
    """Yield the documents of stdin and of files, without empty ones; raises DataError for one that can't be read."""
    from llamactl.corpus.sources import open_source
    from llamactl.errors import DataError
    from llamactl.inference.text_arguments import STDIN, read_stdin

    files = [text for text in texts if text != STDIN]
    if len(files) < len(texts) and (piped := read_stdin()).strip():
        yield piped
    if not files:
        return
    source = open_source(files)
    for piece in range(len(source.pieces)):
        for row in source.documents(piece, column):
            # Raised with other advice than its own, which is for `prepare`: that may skip documents.
            if isinstance(row, DataError):
                raise DataError(row.what, row.why, "Repair it, or leave it out.")
            if isinstance(row, str) and row and not row.isspace():
                yield row
