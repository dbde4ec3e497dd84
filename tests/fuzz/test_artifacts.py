"""Every command meets every file of an artifact, damaged in every way: an exit code that says what it is, in bounded time.

What makes this possible is one opener and one reader of records (`llamactl/storage/records.py`), one reader of logs
(`llamactl/runs/metrics_log.py`) and one of tensors (`llamactl/checkpoint/safetensors_io.py`):
the table finds who goes past them.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.fuzz.conftest import WORKERS, Server
from tests.fuzz.damage import damages
from tests.fuzz.table import FILES, Case, cases, commands, damaged

SEED, NUMBER = int(os.environ.get("FUZZ_SEED", "16")), int(os.environ.get("FUZZ_NUMBER", "1000"))
ALLOWED = {0, 2, 3, 4, 7}
MOST_MEMORY = 1_500_000_000  # bytes


def wrong(case: Case, answer: dict[str, Any]) -> str:
    """What is wrong with an outcome; empty when nothing is."""
    code, told = answer["code"], answer["told"]
    # Weights of 3e38 with a hash that fits are a model that diverges at its next step.
    diverges = code == 6 and case.command.startswith("train") and "diverged" in told
    if code not in ALLOWED and not diverges:
        return f"hangs after {answer['seconds']:.1f} s" if code == -1 else f"exit {code}"
    if "Traceback" in told:
        return "a traceback"
    named = any(name in told for name in (Path(case.file).name, "step-00000020", "dataset d ", "no losses yet"))
    if code == 3 and case.damage != "missing" and not named:
        return "the file is not named"
    if answer["memory"] > MOST_MEMORY:
        return f"{answer['memory']:,} bytes of memory"
    if "\x1b]" in told or "\x1b[2J" in told:
        return "an escape reaches the terminal"
    return ""


def one(case: Case, number: int, whole: Path, server: Server) -> str:
    """What is wrong with what a command makes of a damaged file; empty when nothing is."""
    home = whole.parent / f"case-{number}" / "home"
    home.parent.mkdir()
    try:
        damaged(case, whole, home)
        secret = home.parent / "outside"
        before = secret.read_bytes() if secret.exists() else b""
        answer = server.run(home, case.command.split())
        found = wrong(case, answer)
        if before and secret.read_bytes() != before:
            found = "a file outside of the artifact is changed"
        return f"{found}: {case}\n    {answer['told'][-600:]}" if found else ""
    finally:
        shutil.rmtree(home.parent)


@pytest.mark.slow
def test_no_damage_ends_as_a_bug_a_hang_or_without_a_name(whole: Path, servers: SimpleQueue[Server]) -> None:
    drawn = [case for case in cases(NUMBER, SEED) if os.environ.get("FUZZ_ONLY", "") in str(case)]

    def run(numbered: tuple[int, Case]) -> str:
        server = servers.get()
        try:
            return one(numbered[1], numbered[0], whole, server)
        finally:
            servers.put(server)

    with ThreadPoolExecutor(WORKERS) as pool:
        failures = [failure for failure in pool.map(run, enumerate(drawn)) if failure]
    assert not failures, f"{len(failures)} of {len(drawn)}:\n" + "\n".join(failures)


def test_every_file_meets_every_damage_and_every_command() -> None:
    drawn = cases(1000, 16)
    assert len(set(drawn)) == 1000
    for file in FILES:
        met = [case for case in drawn if case.file == file]
        assert {case.damage for case in met} == set(damages(file)), file
        assert {case.command for case in met} == set(commands(file)), file
