"""Preparations killed at random moments: digests are those of an undisturbed one, no process is left.

Three places make it so: `engines._die_with` ends workers with their parent, `atomic._new_draft` gives each writer a draft of
its own, and `seal.seal_dataset` compares shards with receipts. LLAMACTL_KILLS is how many
parents, and how many workers, are killed:

    LLAMACTL_KILLS=60 pytest tests/corpus/test_kills.py
"""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from llamactl.corpus import engines
from llamactl.corpus.dataset import DatasetDir
from llamactl.corpus.verify import check_dataset
from tests.processes import forked, status

KILLS = int(os.environ.get("LLAMACTL_KILLS", "4"))
GONE_WITHIN = 5.0  # seconds

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two pieces and a bit, which take two workers some seconds."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(24):
        words = " ".join(f"word{(number * 7919 + k * 104729) % 9973}" for k in range(22_000))
        (folder / f"{number:02d}.txt").write_text(words, "utf-8")
    return folder


class Started:
    """A preparation in processes of its own, which all carry a mark in their environment."""

    def __init__(self, texts: Path, name: str, *words: str) -> None:
        self.mark = f"LLAMACTL_TEST_MARK={uuid4().hex}"
        line = [sys.executable, "-m", "llamactl", "prepare", str(texts), "--workers", "2", "--tokenizer", "bpe:300"]
        key, value = self.mark.split("=")
        self.process = subprocess.Popen(
            [*line, "--name", name, *words],
            env={**os.environ, key: value},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def family(self) -> list[int]:
        """The processes that carry the mark and live."""
        return [pid for pid in processes() if self.mark.encode() in environment(pid)]

    def workers(self) -> list[int]:
        """Those that make pieces."""
        return [pid for pid in self.family() if b"spawn_main" in command(pid)]

    def victims(self, kind: str) -> list[int]:
        """Those that may be killed: the parent or its workers, while the preparation runs."""
        if self.process.poll() is not None:
            return []
        return [self.process.pid] if kind == "parent" else self.workers()

    def waits_for(self, kind: str) -> None:
        """Wait until there are processes of a kind, or it has ended."""
        while self.process.poll() is None and not self.victims(kind):
            time.sleep(0.01)

    def lifetime(self, kind: str) -> float:
        """Return for how many seconds there are processes of a kind."""
        self.waits_for(kind)
        started = time.monotonic()
        while self.victims(kind):
            time.sleep(0.02)
        return time.monotonic() - started

    def runs_for(self, seconds: float) -> None:
        """Wait some seconds, or until its end."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)

    def ends(self) -> tuple[int, str]:
        """Wait for its end; nothing that it started may be left."""
        told = self.process.communicate(timeout=120)[1]
        until = time.monotonic() + GONE_WITHIN
        while (left := self.family()) and time.monotonic() < until:
            time.sleep(0.01)
        assert not left, [command(pid) for pid in left]
        return self.process.returncode, told


def processes() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())


def environment(pid: int) -> bytes:
    """What a process was started with; nothing once it is a zombie."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def sound(name: str, digest: str) -> None:
    """A dataset is the reference, to the last byte, with nothing beside it; it goes, so that the next one starts anew."""
    folder = DatasetDir.from_name(name)
    assert folder.info().digest == digest
    assert not [file for file, damage in check_dataset(folder) if damage]
    assert not list(folder.path.rglob(".*"))
    shutil.rmtree(folder.path)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--dedup",)], ids=["plain", "dedup"])
@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_kills_at_random_moments_change_nothing(victim: str, words: tuple[str, ...], texts: Path) -> None:
    """A process is killed, and the same command run again at once, beside whatever the kill may have left."""
    chosen = random.Random(f"{victim} {words}")
    undisturbed = Started(texts, "whole", *words)
    span = undisturbed.lifetime(victim)
    assert undisturbed.ends()[0] == 0
    digest, killed = DatasetDir.from_name("whole").info().digest, 0
    for _ in range(3 * KILLS):
        if killed == KILLS:
            break
        attempt = Started(texts, "killed", *words)
        attempt.waits_for(victim)
        attempt.runs_for(chosen.uniform(0, span))
        if victims := attempt.victims(victim):
            with suppress(ProcessLookupError):  # it ended since
                os.kill(chosen.choice(victims), signal.SIGKILL)
                killed += 1
        else:
            span *= 0.8  # it was over before: the machine is faster than when it was measured
        if victim == "worker":
            code, told = attempt.ends()
            assert code in (0, 4), told
        assert Started(texts, "killed", *words).ends()[0] == 0  # at once
        if victim == "parent":
            attempt.ends()
        sound("killed", digest)
    assert killed > KILLS // 2


@pytest.mark.slow
def test_the_issue_s_own_case(texts: Path) -> None:
    """The parent alone is killed when its first draft is there, and the same command run twice."""
    assert Started(texts, "whole").ends()[0] == 0
    orphaned, folder = Started(texts, "orphaned"), DatasetDir.from_name("orphaned")
    while not [*folder.path.glob("*/.*.draft")] and orphaned.process.poll() is None:
        time.sleep(0.005)
    os.kill(orphaned.process.pid, signal.SIGKILL)
    again = Started(texts, "orphaned")
    assert again.ends()[0] == 0
    orphaned.ends()
    assert Started(texts, "orphaned").ends()[0] == 0
    sound("orphaned", DatasetDir.from_name("whole").info().digest)


def bound(parent: int, gate: int) -> None:
    engines._die_with(parent)
    os.write(gate, b"1")
    time.sleep(60)


@pytest.mark.parametrize("prctl", [True, False], ids=["by the kernel", "by a pipe"])
def test_a_worker_ends_with_its_parent(prctl: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the parent, also where the system can't do it by itself."""
    if not prctl:
        monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    gate_in, gate_out = os.pipe()
    number_in, number_out = os.pipe()

    def parent() -> None:
        worker = multiprocessing.get_context("fork").Process(target=bound, args=(os.getpid(), gate_out))
        worker.start()
        os.write(number_out, str(worker.pid).encode())
        time.sleep(60)

    pid = forked(parent)
    os.read(gate_in, 1)
    worker = int(os.read(number_in, 20))
    os.kill(pid, signal.SIGKILL)
    assert status(pid) == -signal.SIGKILL
    until = time.monotonic() + GONE_WITHIN
    while command(worker) and time.monotonic() < until:
        time.sleep(0.01)
    assert not command(worker)


def test_a_worker_whose_parent_has_ended_already_ends_at_once() -> None:
    assert status(forked(lambda: engines._die_with(os.getppid() + 1))) == 1
