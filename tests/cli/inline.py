"""Commands as people type them, in this process: a tenth of a second instead of two."""

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import cast
from unittest.mock import patch

from llamactl.cli import main


@dataclass(frozen=True)
class Answer:
    """What a command ended with, and what it printed."""

    code: int
    out: str
    err: str


def type_in(*words: str, stdin: bytes | None = b"") -> Answer:
    """Type a command; `stdin` is what is piped into it, None for one that is closed. A bug of ours fails the test."""
    out, err = io.StringIO(), io.StringIO()
    read = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    code = 0
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch.object(sys, "argv", ["llamactl", *words]),
        patch.object(sys, "stdin", read),
        patch.dict(os.environ, {"COLUMNS": "400", "NO_COLOR": "1"}),
    ):
        try:
            main()
        except SystemExit as ended:
            code = cast(int, ended.code or 0)
    answer = Answer(code, out.getvalue(), err.getvalue())
    assert code != 1, answer
    assert "Traceback" not in answer.err
    return answer
