"""The error that a reader yields for a document that can't be read, so that its loss is counted in documents and bytes."""

from llamactl.errors import DataError

SKIP = "Leave such documents out, up to N of them: --max-bad-docs N"


# A DataError, so that it can be raised as it is once more than --max-bad-docs of them were found.
class Unreadable(DataError):
    """A document that can't be read; `lost` is its size in bytes, 0 where that is unknown."""

    def __init__(self, what: str, why: str = "", fix: str = SKIP, lost: int = 0) -> None:
        """Store what is wrong, and how many bytes are lost when the document is skipped."""
        super().__init__(what, why, fix)
        self.lost = lost
