"""Datasets on the Hugging Face hub: pinned to a commit, streamed file by file, never running their code."""

import time
from collections.abc import Generator, Iterator
from itertools import islice
from json import JSONDecodeError
from pathlib import Path
from textwrap import shorten
from typing import Any

from llamactl.corpus.parts import Part
from llamactl.errors import DataError, NoNetwork

WAYS_OUT = "Work without the hub: llamactl prepare sample, or llamactl prepare FILES (.txt .jsonl .parquet)"
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before asking again, as long as nothing comes
PASSING = (408, 429, 500, 502, 503, 504)  # what HTTP calls "later"
PATIENCE = 10.0  # seconds for the first answer; without a limit, a network that drops packets hangs for ever


def hub_parts(candidates: list[tuple[str, str]], config: str) -> tuple[str, list[Part]]:
    """Return the pinned name and the files of the first (repository, revision) that can be streamed.

    The revision is resolved to a commit, so that a resumed prepare reads the same data.
    Raises NoNetwork when the hub can't be reached, DataError when no candidate can be used.
    """
    refused = []
    for repository, revision in candidates:
        try:
            commit = _commit(repository, revision)
            shards = _open(repository, commit, config).num_shards
        except Exception as error:
            failure = to_our_error(error, f"{repository}@{revision}")
            if isinstance(failure, NoNetwork):
                raise failure from error
            refused.append(failure.why)
        else:
            parts = [Part("hub", repository, size=0, index=index, revision=commit, config=config) for index in range(shards)]
            return f"hf:{repository}@{commit}:{config}", parts
    raise DataError("The dataset can't be used.", " ".join(refused), WAYS_OUT)


def stream_rows(part: Part) -> Generator[dict[str, Any], None, None]:
    """Yield the rows of one file of a dataset, each once, with retries after network errors; raises NoNetwork, DataError."""
    yielded, waits = 0, list(WAITS)
    while True:
        try:
            dataset = _open(part.location, part.revision, part.config)
            # After an error the stream starts anew: skip the rows that were yielded before.
            for row in islice(dataset.shard(num_shards=dataset.num_shards, index=part.index), yielded, None):
                yield row
                # Each row that arrives resets the waits: only a hub that sends nothing for half a minute is given up.
                yielded, waits = yielded + 1, list(WAITS)
        except Exception as error:
            if not waits or not _is_temporary(error):
                raise to_our_error(error, part.location) from error
            time.sleep(waits.pop(0))
        else:
            return


def _is_temporary(error: Exception) -> bool:
    """Check whether an error is temporary, so that the same request may succeed later."""
    from huggingface_hub.errors import HfHubHTTPError

    status = [behind.response.status_code for behind in _chain(error) if isinstance(behind, HfHubHTTPError)]
    return status[0] in PASSING if status else isinstance(to_our_error(error, ""), NoNetwork)


def _commit(repository: str, revision: str) -> str:
    """Return the commit that a revision points to now."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(repository, revision=revision, timeout=PATIENCE).sha or revision
    except JSONDecodeError as error:  # a ValueError, but the login page of a network says nothing about the dataset
        raise ConnectionError(
            "The server that answered is not the hub: it is a proxy, or the network requires a login."
        ) from error


def _open(repository: str, commit: str, config: str) -> Any:
    """Open the train split at a commit, and never local data with the same name.

    `datasets` would silently read a folder named like the repository or, when it can't use the repository, an earlier download,
    which it looks for in `cache_dir`: so it gets a folder where nothing is ever stored.
    """
    import datasets

    if Path(repository).is_dir():
        raise ValueError(f"the folder {repository}/ is in the way; to read that one: llamactl prepare {repository}")
    empty_cache = Path(datasets.config.HF_DATASETS_CACHE) / "llamactl"
    return datasets.load_dataset(
        repository, config or None, split="train", streaming=True, revision=commit, cache_dir=str(empty_cache)
    )


def to_our_error(error: Exception, place: str, what: str = "dataset", ways_out: str = WAYS_OUT) -> DataError | NoNetwork:
    """Convert an error of the libraries to DataError (it can't be used) or NoNetwork (the hub can't be reached)."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return DataError(f"The {what} can't be used.", f"{place} is not there, or is private.", ways_out)
    if isinstance(error, HfHubHTTPError):
        return NoNetwork("The Hugging Face hub refused.", _sentence(str(error).splitlines()[0]), ways_out)
    # FileNotFoundError is what datasets raises for a repository without data, and also what it makes of a network
    # that failed, which only the errors behind it tell.
    chain = list(_chain(error))
    if any(isinstance(behind, LocalEntryNotFoundError) for behind in chain):
        return NoNetwork("The Hugging Face hub can't be reached.", _sentence(str(chain[-1])), ways_out)
    # Its bases are OSError and the root of the errors of the HTTP library, which is another one in each huggingface_hub.
    if isinstance(error, (OSError, *HfHubHTTPError.__bases__)) and not isinstance(error, FileNotFoundError):
        return NoNetwork("The Hugging Face hub can't be reached.", _sentence(str(error) or type(error).__name__), ways_out)
    return DataError(f"The {what} can't be used.", _sentence(f"{place}: {error}"), ways_out)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause's cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sentence(text: str) -> str:
    """Format a message as one sentence on one line of at most 240 characters."""
    return shorten(text, 240, placeholder=" ...").rstrip(".") + "."
