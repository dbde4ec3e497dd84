"""Datasets on the Hugging Face hub: found by revision, streamed file by file, never running their code."""

import time
from collections.abc import Generator, Iterator
from itertools import islice
from json import JSONDecodeError
from pathlib import Path
from textwrap import shorten
from typing import Any

from llamactl.corpus.readers import Part
from llamactl.errors import BadData, NoNetwork

WAYS_OUT = "Work without the hub: llamactl prepare sample, or llamactl prepare FILES (.txt .jsonl .parquet)"
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before asking again, as long as nothing comes
PASSING = (408, 429, 500, 502, 503, 504)  # what HTTP calls "later"
PATIENCE = 10.0  # seconds for the first answer; without a limit, a network that drops packets hangs for ever


def hub_parts(candidates: list[tuple[str, str]], config: str) -> tuple[str, list[Part]]:
    """The pinned name and the files of the first (repository, revision) that can be streamed.

    The revision is resolved to a commit, so that a resumed prepare reads the same data.
    Raises NoNetwork when the hub can't be reached, BadData when no candidate can be used.
    """
    refused = []
    for repository, revision in candidates:
        try:
            commit = _commit(repository, revision)
            shards = _open(repository, commit, config).num_shards
        except Exception as error:
            meaning = _meaning(error, f"{repository}@{revision}")
            if isinstance(meaning, NoNetwork):
                raise meaning from error
            refused.append(meaning.why)
        else:
            parts = [Part("hub", repository, size=0, index=index, revision=commit, config=config) for index in range(shards)]
            return f"hf:{repository}@{commit}:{config}", parts
    raise BadData("The dataset can't be used.", " ".join(refused), WAYS_OUT)


def stream(part: Part) -> Generator[dict[str, Any], None, None]:
    """The rows of one file of a dataset, each once, whatever the network does in between; raises NoNetwork, BadData."""
    given, waits = 0, list(WAITS)
    while True:
        try:
            dataset = _open(part.location, part.revision, part.config)
            for row in islice(dataset.shard(num_shards=dataset.num_shards, index=part.index), given, None):
                yield row
                given, waits = given + 1, list(WAITS)
        except Exception as error:
            if not waits or not _passes(error):
                raise _meaning(error, part.location) from error
            time.sleep(waits.pop(0))
        else:
            return


def _passes(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    from huggingface_hub.errors import HfHubHTTPError

    status = [behind.response.status_code for behind in _chain(error) if isinstance(behind, HfHubHTTPError)]
    return status[0] in PASSING if status else isinstance(_meaning(error, ""), NoNetwork)


def _commit(repository: str, revision: str) -> str:
    """The commit that a revision stands for now."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(repository, revision=revision, timeout=PATIENCE).sha or revision
    except JSONDecodeError as error:  # a ValueError, but the login page of a network says nothing about the dataset
        raise ConnectionError("What answers is not the hub: a proxy, or a network that wants a login.") from error


def _open(repository: str, commit: str, config: str) -> Any:
    """The train split as it was at a commit, and nothing that this machine holds under the same name.

    Datasets would quietly read a folder named like the repository instead or, when it can't use the repository,
    what it downloaded at some time: it looks for that in `cache_dir`, so it gets one where nothing is ever kept.
    """
    import datasets

    if Path(repository).is_dir():
        raise ValueError(f"the folder {repository}/ is in the way; to read that one: llamactl prepare {repository}")
    nothing = Path(datasets.config.HF_DATASETS_CACHE) / "llamactl"
    return datasets.load_dataset(
        repository, config or None, split="train", streaming=True, revision=commit, cache_dir=str(nothing)
    )


def _meaning(error: Exception, place: str) -> BadData | NoNetwork:
    """Which of the two an error of the layers below is: the dataset can't be used, or the hub can't be reached."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return BadData("The dataset can't be used.", f"{place} is not there, or is private.", WAYS_OUT)
    if isinstance(error, HfHubHTTPError):
        return NoNetwork("The Hugging Face hub refused.", _sentence(str(error).splitlines()[0]), WAYS_OUT)
    # FileNotFoundError is what datasets raises for a repository without data, and also what it makes of a network
    # that failed, which only the errors behind it tell.
    chain = list(_chain(error))
    if any(isinstance(behind, LocalEntryNotFoundError) for behind in chain):
        return NoNetwork("The Hugging Face hub can't be reached.", _sentence(str(chain[-1])), WAYS_OUT)
    # Its bases are OSError and the root of the errors of the HTTP library, which is another one in each huggingface_hub.
    if isinstance(error, (OSError, *HfHubHTTPError.__bases__)) and not isinstance(error, FileNotFoundError):
        return NoNetwork("The Hugging Face hub can't be reached.", _sentence(str(error) or type(error).__name__), WAYS_OUT)
    return BadData("The dataset can't be used.", _sentence(f"{place}: {error}"), WAYS_OUT)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, the one that it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _sentence(text: str) -> str:
    """A message on one line, not too long, that ends once."""
    return shorten(text, 240, placeholder=" ...").rstrip(".") + "."
