"""Mixtures: several sources in one dataset, each with a given share of its tokens.

Nothing is repeated: the source that is scarcest for its share decides how many tokens of the others are used, the first ones of
each. So the dataset depends on sources and weights alone, whatever the order in which pieces are made.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from math import inf

from llamactl.corpus.sources import Reading, Source, default_tokenizer, default_val_fraction, is_named, open_source
from llamactl.errors import UsageError
from llamactl.storage.home import make_name

# Not every number: shares are exact fractions, and those of 1e-400 or 1e999999999 are of more digits than memory has room for.
WEIGHT = re.compile(r"[+-]?(\d{1,12}(\.\d{0,12})?|\.\d{1,12})(e[+-]?\d)?|[+-]?\d{1,12}/\d{1,12}", re.IGNORECASE)
EXAMPLE = "Example: llamactl prepare mine.txt sample --weights 0.7,0.3"


def read_weights(text: str, sources: int) -> tuple[Fraction, ...]:
    """Parse weights such as 0.7,0.3 or 7,3, one for each of some sources, into shares of 1; raises UsageError."""
    words = [word.strip() for word in text.split(",")]
    try:
        if not all(map(WEIGHT.fullmatch, words)):
            raise ValueError
        weights = [Fraction(word) for word in words]
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"--weights takes numbers with commas between them, not {text!r}.", "", EXAMPLE) from error
    if len(weights) != sources:
        why = "Files that a shell's * found are sources, too: quote it, or name a folder."
        raise UsageError(f"--weights has {len(weights)} numbers for {sources} sources.", why, EXAMPLE)
    if min(weights) <= 0 or sources < 2:
        raise UsageError(
            f"--weights can't be {text}.", "It takes two sources or more, and a positive number for each.", EXAMPLE
        )
    return tuple(weight / sum(weights) for weight in weights)


def open_mixture(words: Sequence[str], weights: str, reading: Reading) -> Source:
    """Plan a mixture of sources, each given by one argument as `open_source` takes it; raises what that does, UsageError."""
    shares = read_weights(weights, len(words))
    # How text files are read does not concern the others.
    return mix_sources(
        [open_source([word], Reading(reading.text_column) if is_named(word) else reading) for word in words], shares
    )


def mix_sources(sources: Sequence[Source], weights: Sequence[Fraction]) -> Source:
    """Combine sources into one whose pieces are those of all, in order; the defaults suit what the scarcest one allows."""
    starts = accumulate((len(source.pieces) for source in sources), initial=0)
    # Each keeps its own way of reading, and its pieces the numbers that they have in the mixture.
    parts = tuple(
        replace(source, pieces=((),) * start + source.pieces, first_piece=start, weight=weight)
        for source, start, weight in zip(sources, starts, weights, strict=False)
    )
    inputs = "\n".join(f"{weight} {source.inputs}" for source, weight in zip(sources, weights, strict=True))
    size = min(map(_allowed_bytes, parts))
    return Source(
        name=make_name("-".join(source.name for source in sources)) or "mixture",
        inputs=f"sha256:{hashlib.sha256(inputs.encode()).hexdigest()}",
        pieces=tuple(piece for source in sources for piece in source.pieces),
        tokenizer=default_tokenizer(size) if size < inf else "gpt2",
        val_fraction=default_val_fraction(size),
        text_column="",  # each has its own
        split="",
        notes=tuple(f"{source.name}: {note}" for source in sources for note in source.notes),
        mixed=parts,
    )


def _allowed_bytes(component: Source) -> float:
    """Return the bytes of the mixture for which this source suffices; infinite where its size is not known."""
    return float(component.size / component.weight) if component.size else inf


def order_by_scarcity(source: Source) -> list[Source]:
    """Order the components so that the likely scarcest for its share comes first, and limits the others from the start.

    What is made is the same in any order.
    """
    return sorted(source.components, key=_allowed_bytes)
