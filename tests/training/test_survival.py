"""Runs that can't be lost: killed, out of disk, damaged by a power cut, signalled, started twice, and full of NaN.

LLAMACTL_KILLS is how many SIGKILLs a run gets in all, half of them inside saves, and LLAMACTL_KILLED_RUNS how many runs are
killed five times each:

    LLAMACTL_KILLS=60 LLAMACTL_KILLED_RUNS=10 LLAMACTL_SIGNALS=30 LLAMACTL_SOAK=20000 pytest tests/training/test_survival.py
"""

import gc
import math
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from llamactl.checkpoint import format as checkpoint_format
from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.corpus.dataset import Dataset
from llamactl.errors import DataError, OutOfSpace, UserError
from llamactl.metrics.monitor import record_events
from llamactl.runs.run_dir import RunDir
from llamactl.training.async_checkpoint import AsyncCheckpointer
from llamactl.training.events import Event, Replayed, Resumed, Saved, Stepped, Stopped
from llamactl.training.signals import StopRequests, handle_signals
from llamactl.training.trainer import Trainer, train_run
from tests.conftest import make_dataset
from tests.faults import Crash, Disk, put_in_place
from tests.processes import forked, status
from tests.training.conftest import Configured, Made
from tests.training.test_trainer import RATE, assert_equal, weights

KILLS, KILLED_RUNS = int(os.environ.get("LLAMACTL_KILLS", "12")), int(os.environ.get("LLAMACTL_KILLED_RUNS", "2"))
SIGNALS, SOAK = int(os.environ.get("LLAMACTL_SIGNALS", "9")), int(os.environ.get("LLAMACTL_SOAK", "2000"))


def run_to_the_end(name: str, made: Made, wishes: StopRequests | None = None) -> list[Event]:
    config, world, dataset = made
    run = RunDir.from_name(name)
    run.start(config, {}, again=True)
    return list(record_events(train_run(config, dataset, run, world, RATE, wishes), run))


def logged(name: str) -> list[tuple[int, float, float]]:
    return sorted(
        (row["step"], row["loss"], row["grad_norm"]) for row in RunDir.from_name(name).rows() if row["kind"] == "step"
    )


# Kills


def killed_at_a_time(name: str, made: Made, after: float) -> int:
    pid = forked(lambda: run_to_the_end(name, made))
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return status(pid)


def killed_at_an_operation(name: str, made: Made, number: int) -> int:
    def work() -> None:
        with put_in_place(Disk(number, "kill")):
            run_to_the_end(name, made)

    return status(forked(work))


@pytest.mark.slow
def test_killed_at_any_instant_a_run_ends_with_the_same_bits(made: Made) -> None:
    disk, started = Disk(), time.monotonic()
    with put_in_place(disk):
        run_to_the_end("whole", made)
    took, chance, killed = time.monotonic() - started, random.Random(0), 0
    expected = weights(RunDir.from_name("whole"))
    plans = [1] * KILLS + [5] * KILLED_RUNS
    for trial, kills in enumerate(plans):
        name = f"killed{trial}"
        for _ in range(kills):
            if trial % 2:
                hit = killed_at_a_time(name, made, chance.uniform(0, took)) == -signal.SIGKILL
                killed += hit
                took *= 1 if hit else 0.8  # it was over before: the machine is faster than when it was measured
            else:  # from the fourth on, as the first three write the config
                killed += killed_at_an_operation(name, made, chance.randrange(3, len(disk.log))) == -signal.SIGKILL
        assert status(forked(partial(run_to_the_end, name, made))) == 0
        assert_equal(expected, weights(RunDir.from_name(name)))
        assert logged(name) == logged("whole")
        assert not [path for path in RunDir.from_name(name).checkpoints.iterdir() if path.name.startswith(".")]
        shutil.rmtree(RunDir.from_name(name).path)
    assert killed > sum(plans) / 2  # the others were done before


# Faults, each durable operation in its turn


FAULTS = [
    (how, persistent)
    for how in ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EMFILE", "short")
    for persistent in (False, True)
] + [("crash", False)]  # fmt: skip
LOSSES = (None, False, True)  # nothing, contents, contents and names


@pytest.fixture
def ready(configured: Configured, dataset: Dataset) -> Iterator[tuple[Trainer, RunDir, dict[str, torch.Tensor], Made]]:
    """A run with checkpoints 4 and 8 on the disk, and 12 about to be saved, when 4 will go."""
    config, world = configured(train={"tokens": 5120, "save_every": 4, "eval_every": 100})
    made = (config, world, dataset)
    run_to_the_end("whole", made)
    run = RunDir.from_name("template")
    held = Trainer(config, dataset, run, world, RATE)
    events = train_run(config, dataset, run, world, RATE)
    while run.steps() != [4, 8]:
        next(events)
    events.close()
    list(held.load_checkpoint())
    while held.state.step < 12:
        list(held.train_step())
    yield held, run, weights(RunDir.from_name("whole")), made
    held.close()


def save(held: Trainer, run: RunDir) -> None:
    saver = AsyncCheckpointer(run, held.config, held.dataset.tokenizer)
    held.checkpointer.close()
    held.run, held.checkpointer = run, saver
    list(held.save_checkpoint())
    list(held.poll(wait=True))


def sound(run: RunDir) -> list[int]:
    """The steps of checkpoints that are whole; one that is not, under a valid name, is not allowed to be there."""
    return [checkpoint_format.read_verified_state(run.checkpoint(step)).step for step in run.steps()]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "persistent"), FAULTS)
def test_a_save_that_fails_anywhere_costs_nothing_that_was_saved(how: str, persistent: bool, ready: Any) -> None:
    held, template, expected, made = ready
    seen: set[tuple[int, ...]] = set()
    for number in count():
        for lost in LOSSES if how == "crash" else (None,):
            run = RunDir.from_name("tried")
            shutil.rmtree(run.path, ignore_errors=True)
            shutil.copytree(template.path, run.path)
            disk = Disk(number, how, persistent)
            failure: BaseException | None = None
            with put_in_place(disk):
                try:
                    save(held, run)
                except (UserError, Crash) as error:
                    failure = error
            if lost is not None:
                disk.lose(lost, run.path)
            if isinstance(failure, UserError):
                assert failure.code == 4, failure
            steps = sound(run)
            assert {4, 8} <= set(steps) or {8, 12} <= set(steps), (disk.log[number], steps)
            assert failure or 12 in steps
            if tuple(steps) not in seen:
                seen.add(tuple(steps))
                run_to_the_end("tried", made)
                assert_equal(expected, weights(run))
        if len(disk.log) <= number:
            break
    assert number > 20
    assert seen


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(made: Made) -> None:
    """The whole way: the save fails in its thread, the next step says so, and nothing is missing in the end."""
    run_to_the_end("whole", made)
    for number in (40, 90, 140):
        with put_in_place(Disk(number, "ENOSPC", persistent=True)), pytest.raises(OutOfSpace, match="Can't write") as caught:
            run_to_the_end("full", made)
        assert caught.value.code == 4
        assert len(str(caught.value).splitlines()) <= 3
        before = sound(RunDir.from_name("full"))
    assert before
    run_to_the_end("full", made)
    assert_equal(weights(RunDir.from_name("whole")), weights(RunDir.from_name("full")))


def test_rows_are_on_the_disk_before_their_checkpoint(made: Made) -> None:
    with put_in_place(Disk()) as disk:
        run_to_the_end("a", made)
    rows = [number for number, operation in enumerate(disk.log) if operation == "fsync metrics.jsonl"]
    names = [number for number, operation in enumerate(disk.log) if operation.startswith("rename .step")]
    assert len(rows) == len(names) == 10
    assert all(row < name for row, name in zip(rows, names, strict=True))


def test_training_does_not_wait_for_the_disk(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk keeps no step from being done, but a second save waits for the first."""
    config, world, dataset = made
    gate = threading.Event()
    write = checkpoint_io.save_checkpoint
    monkeypatch.setattr(checkpoint_io, "save_checkpoint", lambda *words: gate.wait(20) and write(*words))
    run, seen = RunDir.from_name("slow"), 0
    for event in train_run(config, dataset, run, world, RATE):
        if isinstance(event, Stepped) and event.step == 6:
            assert not run.steps()
            gate.set()
        seen += isinstance(event, Saved)
    assert seen == 10


# Exact resume, and what is said about it


def test_replayed_steps_are_compared_with_the_log(made: Made) -> None:
    config, world, dataset = made
    run = RunDir.from_name("a")
    events = record_events(train_run(config, dataset, run, world, RATE), run)
    for event in events:
        if isinstance(event, Stepped) and event.step == 8:
            break
    del events
    gc.collect()
    assert run.steps() == [3, 6]
    replayed = [event for event in run_to_the_end("a", made) if isinstance(event, Replayed)]
    assert [(event.step, event.steps, event.different) for event in replayed] == [(8, 2, 0)]
    shutil.rmtree(run.checkpoint(30))
    text = run.metrics_path.read_text().splitlines()
    number = max(number for number, line in enumerate(text) if '"kind": "step", "step": 29,' in line)
    loss = logged("a")[28][1]
    text[number] = text[number].replace(repr(loss), repr(math.nextafter(loss, 9)))
    run.metrics_path.write_text("\n".join(text) + "\n")
    replayed = [event for event in run_to_the_end("a", made) if isinstance(event, Replayed)]
    assert [(event.step, event.steps, event.different) for event in replayed] == [(30, 3, 1)]
    assert 0 < replayed[0].largest < 1e-14


def test_what_differs_from_the_checkpoints_environment_is_named(made: Made) -> None:
    config, world, dataset = made
    run_to_the_end("a", made)
    run = RunDir.from_name("a")
    state = checkpoint_format.read_verified_state(run.checkpoint(30))
    old = {**state.environment, "threads": 64, "packages": {**state.environment["packages"], "torch": "1.0"}}
    (run.checkpoint(30) / checkpoint_format.STATE).write_text(
        state.model_copy(update={"environment": old}).with_digest().to_text()
    )
    changed = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": 1})})
    resumed = next(train_run(changed, dataset, run, world, RATE))
    assert isinstance(resumed, Resumed)
    torch_now = str(state.environment["packages"]["torch"])
    assert set(resumed.differs) == {"threads 64 -> 1", f"torch 1.0 -> {torch_now}", "micro_batch 8 -> 1"}


def test_the_same_environment_is_no_difference(made: Made) -> None:
    run_to_the_end("a", made)
    shutil.rmtree(RunDir.from_name("a").checkpoint(30))
    resumed = run_to_the_end("a", made)[0]
    assert isinstance(resumed, Resumed)
    assert (resumed.step, resumed.differs, resumed.damaged) == (27, (), ())


def test_other_data_under_the_same_name_are_refused(made: Made, corpus: Path, tmp_path: Path) -> None:
    config, world, _ = made
    run_to_the_end("a", made)
    other = make_dataset(tmp_path / "data" / "addresses", corpus, val_fraction=0.3).open()
    with pytest.raises(DataError, match="not the one that this run was trained on"):
        list(train_run(config, other, RunDir.from_name("a"), world, RATE))


def test_a_run_may_be_made_longer(configured: Configured, dataset: Dataset) -> None:
    """With a schedule that does not know the end before it is near, the first steps are those of the longer run."""
    constant = {"schedule": {"name": "wsd", "warmup": 0.0, "cooldown": 0.0}}
    short, long = (configured(train={"tokens": tokens, "save_every": 5}, **constant) for tokens in (2560, 5120))
    run_to_the_end("grown", (*short, dataset))
    run_to_the_end("grown", (*long, dataset))
    run_to_the_end("whole", (*long, dataset))
    assert_equal(weights(RunDir.from_name("whole")), weights(RunDir.from_name("grown")))


def test_every_nth_checkpoint_stays(configured: Configured, dataset: Dataset) -> None:
    config, world = configured(train={"tokens": 5120, "save_every": 2, "keep_last": 1, "keep_every": 8, "eval_every": 100})
    run_to_the_end("a", (config, world, dataset))
    assert RunDir.from_name("a").steps() == [8, 16, 20]


# Signals


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_at_random_times(number: signal.Signals, made: Made) -> None:
    started = time.monotonic()
    run_to_the_end("whole", made)
    took, chance = time.monotonic() - started, random.Random(number)
    stopped = 0
    for trial in range(SIGNALS // 3):
        name, ready = f"signalled{trial}", Path(f"{RunDir.from_name('x').path}.{trial}")

        def work(name: str = name, ready: Path = ready) -> None:
            with handle_signals() as wishes:
                ready.parent.mkdir(exist_ok=True)
                ready.touch()
                events = run_to_the_end(name, made, wishes)
            stops = [event for event in events if isinstance(event, Stopped)]
            if stops:
                assert RunDir.from_name(name).steps()[-1:] in ([stops[0].step], []), "no checkpoint of the step it stopped at"
                os._exit(128 + stops[0].signal)

        pid = forked(work)
        while not ready.exists():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, took))
        os.kill(pid, number)
        code = status(pid)
        assert code in ((0,) if number == signal.SIGUSR1 else (0, 128 + number))
        stopped += code != 0
        assert status(forked(partial(run_to_the_end, name, made))) == 0
        assert_equal(weights(RunDir.from_name("whole")), weights(RunDir.from_name(name)))
        assert logged(name) == logged("whole")
    assert stopped or number == signal.SIGUSR1


def test_a_wish_saves_at_once_and_goes_on(made: Made) -> None:
    config, world, dataset = made
    wishes, run = StopRequests(), RunDir.from_name("a")
    saved = []
    for event in train_run(config, dataset, run, world, RATE, wishes):
        wishes.save |= isinstance(event, Stepped) and event.step in (4, 13)
        saved += [event.step] if isinstance(event, Saved) else []
    assert saved == sorted({*range(3, 31, 3), 4, 13})


def test_a_second_signal_ends_at_once() -> None:
    """Without waiting for anything: here for ever."""

    def work() -> None:
        with handle_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    assert status(forked(work)) == 143


# Room


@pytest.mark.parametrize("name", ["NOFILE", "FSIZE"])
def test_limits_end_with_their_exit_code(name: str, made: Made) -> None:
    def work() -> None:
        soft = 12 if name == "NOFILE" else 20_000
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, soft))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        run_to_the_end("a", made)

    assert status(forked(work)) == 4


@pytest.mark.slow
def test_nothing_grows(configured: Configured, dataset: Dataset) -> None:
    """Memory, descriptors and threads over many steps with a checkpoint every 50."""
    config, world = configured(
        train={"tokens": SOAK * 64, "tokens_per_step": 64, "save_every": 50, "eval_every": 10**9, "prompts": []}
    )
    run, seen = RunDir.from_name("a"), list[tuple[int, int, int]]()
    for event in record_events(train_run(config, dataset, run, world, RATE), run):
        if isinstance(event, Saved) and event.step >= SOAK // 4:
            with Path("/proc/self/statm").open() as file:
                pages = int(file.read().split()[1])
            seen.append((pages * resource.getpagesize(), len(list(Path("/proc/self/fd").iterdir())), threading.active_count()))
    memory, files, threads = zip(*seen, strict=True)
    assert max(files) - min(files) <= 2  # a checkpoint that is being written
    assert max(threads) == min(threads)
    assert max(memory[-10:]) < 1.02 * max(memory[:10]) + 2e6
    assert len(run.steps()) <= config.train.keep_last + 1
    assert sys.getsizeof(run.metrics_path.read_bytes()) < SOAK * 400


def test_a_state_is_sealed() -> None:
    state = State(step=1, tokens=2, seconds=3.0)
    assert state.with_digest().digest != state.model_copy(update={"step": 2}).with_digest().digest
