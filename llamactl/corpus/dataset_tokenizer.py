"""The tokenizer of a dataset: loaded or learned from its source, stored where all pieces find it, its encoder checked."""

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from time import monotonic

from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.dataset_info import Recipe
from llamactl.corpus.documents import read_piece
from llamactl.corpus.pieces import PATIENCE
from llamactl.corpus.sources import Source
from llamactl.errors import DataError
from llamactl.storage import atomic, locks
from llamactl.tokenizer import bpe, encoders
from llamactl.tokenizer.bpe import Tokenizer, read_tokenizer

# A BPE is trained on this much text; more changes its merges little and takes memory (50 MB gave 4.0 bytes per token).
TRAINING_TEXT = 64 << 20

# An encoder is compared with the reference, tiktoken, on this many characters before it is used for the rest.
CHECKED_TEXT = 1 << 20


@dataclass(frozen=True)
class Learning:
    """The progress of training a BPE: bytes of text read so far, and seconds since it began."""

    text_bytes: int
    seconds: float


@dataclass(frozen=True)
class TokenizerReady:
    """The tokenizer exists; `learned` if it was trained on the source, `lossless` if its tokens hold exactly the text.

    `refused` names a faster encoder that gave other ids.
    """

    vocab_size: int
    learned: bool
    lossless: bool
    encoder: str
    refused: str = ""


def store_tokenizer(
    source: Source, recipe: Recipe, folder: DatasetDir, encoder: str, alone: bool
) -> Generator[Learning, None, tuple[TokenizerReady, str]]:
    """Write the tokenizer where all pieces find it; returns its digest. Raises DataError when other shares use another one."""
    size = bpe.parse_bpe_size(recipe.tokenizer)
    if size:
        tokenizer = yield from _train_tokenizer(source, recipe, size)
    else:
        tokenizer = bpe.load_tokenizer(recipe.tokenizer)
    with locks.hold_lock(folder.tokenizer_lock_path, patience=PATIENCE):
        exists = os.path.lexists(folder.tokenizer_path)
        if exists and not alone and read_tokenizer(folder.tokenizer_path, folder.path).digest != tokenizer.digest:
            what = f"{folder.tokenizer_path} is another tokenizer than {recipe.tokenizer} is now."
            fix = f"Give the tokenizer of the other shares, use --name NAME, or remove {folder.path}."
            raise DataError(what, "All shares of a dataset must have the same one.", fix)
        atomic.write_file(folder.tokenizer_path, tokenizer.description)
    reference, checked = encoders.reference_encoder(tokenizer), _training_text(source, recipe, CHECKED_TEXT)
    refused = "" if encoder == reference or encoders.encoders_agree(encoder, tokenizer, list(checked)) else encoder
    used = reference if refused else encoder
    return TokenizerReady(tokenizer.vocab_size, bool(size), tokenizer.lossless, used, refused), tokenizer.digest


def _train_tokenizer(source: Source, recipe: Recipe, size: int) -> Generator[Learning, None, Tokenizer]:
    """Train a BPE on the source and yield its progress; returns the tokenizer."""
    started = monotonic()
    learning = bpe.learn_bpe(_training_text(source, recipe, TRAINING_TEXT), size)
    while True:
        try:
            yield Learning(next(learning), monotonic() - started)
        except StopIteration as ended:
            tokenizer: Tokenizer = ended.value
            return tokenizer


def _training_text(source: Source, recipe: Recipe, most: int) -> Iterator[str]:
    """Yield the first training documents of the source, up to some `most` characters; those of a mixture by its weights."""
    for component in source.components:
        yield from _first_documents(component, recipe, int(most * component.weight))


def _first_documents(source: Source, recipe: Recipe, most: int) -> Iterator[str]:
    for piece in range(len(source.pieces)):
        for document in read_piece(source, piece, recipe):
            if most <= 0:
                return
            if document.place == "train":
                most -= len(document.text)
                yield document.text
