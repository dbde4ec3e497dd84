"""The records of dataset.json: recipe, inputs, shards and digests."""

import hashlib
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from llamactl.storage.records import Count, Record

Split = Literal["train", "val"]


class Recipe(Record):
    """The settings that a dataset is made with; the same recipe over the same inputs gives the same bytes."""

    source: str
    inputs: str = Field(description="the resolved revision, or a digest of the files' names and sizes")
    tokenizer: str
    text_column: str = "text"
    val_fraction: float = Field(gt=0, lt=1)
    max_tokens: Count = Field(0, description="0: everything")
    max_doc_bytes: Count = Field(0, description="longer documents are left out; 0: they are split")
    dedup: bool = Field(False, description="of documents with the same text the first is kept")
    max_bad_docs: Count = Field(0, description="so many that can't be read are left out; one more is an error")
    split: str = Field("files", description="where a document of a text file ends")
    encoding: str = Field("", description="of text files without a byte order mark; empty: UTF-8")
    weights: str = Field("", description="the share of the tokens that each source has, as fractions; empty: it is no mixture")
    row_tokens: Count = Field(0, description="conversations: each window is a row of so many tokens; 0: a stream of text")
    mixed_with: str = Field("", description="conversations: the digest of a dataset of text and the share of rows from it")
    # Later fields are written only where they differ from their default, so that digests of older datasets still hold.
    added: ClassVar = frozenset({"split", "encoding", "weights", "row_tokens", "mixed_with"})

    def differences(self, other: "Recipe") -> set[str]:
        """Name the fields in which another recipe differs; `source` is only how the inputs were typed."""
        return {name for name in Recipe.model_fields if name != "source" and getattr(self, name) != getattr(other, name)}


class Shard(Record):
    """One file of tokens, with its counts and its hash."""

    file: str = Field(pattern=r"^(train|val)/\d{5,}\.npy$")
    tokens: Count
    documents: Count
    text_bytes: Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def split(self) -> str:
        """Return the split that the shard belongs to."""
        return self.file.split("/")[0]

    @property
    def piece(self) -> int:
        """Return the number of the piece that the shard holds."""
        return int(self.file.removesuffix(".npy").split("/")[1])


class InputFile(Record):
    """A file that a dataset was made from, known by its content."""

    name: str
    size: Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Inputs(Record):
    """The local files that a dataset was made from, in reading order; the digest covers them and the dataset's own digest."""

    files: tuple[InputFile, ...]
    digest: str = ""


class DatasetInfo(Record):
    """The content of dataset.json, which is written last: where it exists, the dataset is complete.

    `digest` identifies the tokens, and a run stores it. `inputs` says where they came from and has a digest of its own, so that
    datasets with the same tokens have the same digest, even those made before inputs were recorded (None).
    """

    format: Literal[1] = 1
    recipe: Recipe
    tokenizer: str = Field(description="sha256 of tokenizer.json")
    vocab_size: int = Field(ge=1, le=2**32)
    dtype: Literal["uint16", "uint32"]
    shards: tuple[Shard, ...]
    documents_read: Count
    skipped: dict[str, Count] = Field(description="documents left out, by reason")
    skipped_bytes: dict[str, Count] = Field({}, description="bytes of what was left out, by reason, where they are known")
    inputs: Inputs | None = None
    added: ClassVar = frozenset({"skipped_bytes", "inputs"})
    digest: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> "DatasetInfo":
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise ValueError("a shard is listed twice")
        # The two fields are stored separately, so an edited file could contradict itself.
        if self.dtype == "uint16" and self.vocab_size > 1 << 16:
            raise ValueError(f"uint16 can't hold {self.vocab_size:,} ids")
        return self

    def with_digest(self) -> "DatasetInfo":
        """Fill in the digests, which together cover every field."""
        # `inputs` is not part of this digest: datasets made before inputs were recorded keep theirs.
        digest = _sha256(self.model_dump_json(exclude={"digest", "inputs"}))
        inputs = self.inputs
        if inputs:
            content = f"{digest} {inputs.model_dump_json(exclude={'digest'})}"
            inputs = inputs.model_copy(update={"digest": _sha256(content)})
        return self.model_copy(update={"digest": digest, "inputs": inputs})

    def as_file(self) -> str:
        """Format the record as dataset.json stores it."""
        return self.model_dump_json(indent=1) + "\n"

    def total(self, split: Split, what: Literal["tokens", "documents", "text_bytes"]) -> int:
        """Sum a count over the shards of a split."""
        return sum(getattr(shard, what) for shard in self.shards if shard.split == split)


def _sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
