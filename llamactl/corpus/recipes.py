"""Build the recipe of a dataset from a planned source and the options that were typed."""

from collections.abc import Sequence

from pydantic import ValidationError

from llamactl.corpus.dataset_info import Recipe
from llamactl.corpus.sources import Source
from llamactl.errors import UsageError
from llamactl.escape import path_to_text
from llamactl.storage.records import explain_error

# Bytes: a document is held in memory until its end is known, or until it is longer than --max-doc-bytes.
LARGEST_LIMIT = 256_000_000


def build_recipe(source: Source, words: Sequence[str], **options: str | float) -> Recipe:
    """Return the recipe of a source, given by `words`; what the options leave empty or 0 is chosen by the source.

    Raises UsageError for a value out of bounds.
    """
    if float(options.get("max_doc_bytes", 0)) > LARGEST_LIMIT:
        why = "A longer document is cut into several, if it is not left out."
        raise UsageError(
            f"--max-doc-bytes takes at most {LARGEST_LIMIT:,}.", why, "Leave it out to keep documents of any length."
        )
    chosen: dict[str, str | float] = {
        "source": " ".join(words),
        "inputs": source.inputs,
        "tokenizer": source.tokenizer,
        "text_column": source.text_column,
        "weights": source.weights,
        "split": source.split,
        "encoding": source.encoding,
        "val_fraction": source.val_fraction,
    }
    chosen |= {name: value for name, value in options.items() if value}
    # What was typed may hold bytes that are not UTF-8, which JSON can't.
    texts = {name: path_to_text(value) if isinstance(value, str) else value for name, value in chosen.items()}
    try:
        return Recipe.model_validate(texts)
    except ValidationError as error:
        raise UsageError("An option is out of bounds.", explain_error(error), "See: llamactl prepare --help") from error
