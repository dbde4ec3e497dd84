"""The command itself, killed at random moments and typed again at once: the same bits, and no process left.

LLAMACTL_COMMAND_KILLS is how many SIGKILLs there are in all (CI: a few; the long version: 60).
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from llamactl.hardware import throughput
from llamactl.runs.run_dir import RunDir
from llamactl.training import trainer
from tests.cli.test_resuming import SMALL, prepared
from tests.processes import status, typed
from tests.training.test_survival import logged, sound
from tests.training.test_trainer import assert_equal, weights

KILLS = int(os.environ.get("LLAMACTL_COMMAND_KILLS", "8"))
EACH = 4  # kills of one run, before it is left to end
COMMAND = f"train --run {{}} --tokens 3840 {SMALL} --set train.eval_every=20"

pytestmark = pytest.mark.slow
assert prepared
assert trainer  # imported here, once for all forked processes


@pytest.fixture(autouse=True)
def data(home: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: 1e11)
    shutil.copytree(prepared, home / "data" / "addresses")


def left(session: int) -> list[str]:
    """The processes of a session that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(path.parent.name)
    return found


def again(name: str) -> str:
    """What a person types: to resume it where it was begun, to start it where it was not."""
    return f"train --resume {name}" if RunDir.from_name(name).config_path.exists() else COMMAND.format(name)


def test_the_command_killed_at_random_moments_ends_with_the_same_bits(home: Path) -> None:
    started = time.monotonic()
    assert status(typed(COMMAND.format("whole"), home / "log.txt", os.setsid)) == 0, (home / "log.txt").read_text()
    took, chance, killed = time.monotonic() - started, random.Random(16), 0
    for trial in range(-(-KILLS // EACH)):
        name = f"killed{trial}"
        for _ in range(EACH):
            pid = typed(again(name), home / "log.txt", os.setsid)
            time.sleep(chance.uniform(0, took))
            os.kill(pid, signal.SIGKILL)
            hit = status(pid) == -signal.SIGKILL
            killed += hit
            took *= 1 if hit else 0.8  # it was over before: the machine is faster than when it was measured
            assert left(pid) == []
        ended = typed(again(name), home / "log.txt", os.setsid)
        assert status(ended) == 0, (home / "log.txt").read_text()
        assert left(ended) == []
        run = RunDir.from_name(name)
        assert sound(run)[-1] == 60
        assert_equal(weights(RunDir.from_name("whole")), weights(run))
        assert logged(name) == logged("whole")
        assert not [path for path in run.checkpoints.iterdir() if path.name.startswith((".", "damaged"))]
    assert killed >= KILLS / 4  # the others were done before
