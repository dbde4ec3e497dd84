"""Asynchronous checkpoints: training waits for a copy of the tensors in main memory, not for the disk."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from llamactl.checkpoint import io as checkpoint_io
from llamactl.checkpoint.format import State
from llamactl.checkpoint.huggingface import read_chat_template
from llamactl.checkpoint.retention import Retention
from llamactl.checkpoint.select import locate_checkpoint
from llamactl.checkpoint.snapshot import Snapshot
from llamactl.config.schema import Config
from llamactl.runs.run_dir import RunDir
from llamactl.storage import disk
from llamactl.storage.folder_guard import RESUME_RUN, FolderGuard
from llamactl.tokenizer.bpe import Tokenizer
from llamactl.training.host_copy import HostCopies


class AsyncCheckpointer:
    """Writer of checkpoints, one at a time, in a thread; `poll` raises the error of a write that failed."""

    def __init__(self, run: RunDir, config: Config, tokenizer: Tokenizer, leads: bool = True) -> None:
        """Prepare to save `run`; every checkpoint includes the config and the tokenizer. Only the rank that `leads` writes.

        The run's folder is guarded from here on, or from its creation, and never created a second time.
        """
        self._guard = FolderGuard(run.path, RESUME_RUN) if leads and run.path.is_dir() else None
        self._run, self._config, self._tokenizer, self._leads = run, config, tokenizer, leads
        self._retention = Retention(run, config.train.keep_last, config.train.keep_every)
        # One thread, so that a checkpoint is never pruned or written beside another one.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: Future[State] | None = None
        self._copies = HostCopies()

    def newest(self) -> tuple[Path | None, tuple[str, ...]]:
        """Find the newest valid checkpoint, None without one, and describe the damage of newer ones; raises FolderMoved."""
        self._open_guard().check()
        path, damaged = self._retention.newest()
        self._take_chat_template(path)
        return path, damaged

    def save(self, taken: Snapshot, state: State) -> None:
        """Start to write a checkpoint; call `poll(wait=True)` for the previous one before.

        If main memory is too small for a copy, or the tensors are sharded, return only once the checkpoint is written.
        Sharded tensors are gathered one at a time, so that no rank holds more than its shards and one tensor.
        """
        if not self._leads:
            if taken.is_sharded:
                taken.gather()
            return
        if taken.is_sharded:
            # Training waits: a copy to write from would be all of a model that was too large for one process.
            self._pending = Future()
            self._pending.set_result(self._write(taken, state))
            return
        copy = self._copies.copy_to_host(taken)
        self._pending = self._pool.submit(self._write, copy or taken, state)
        if not copy:
            # Waits for the write without raising: `poll` raises its error.
            self._pending.exception()

    def poll(self, wait: bool = False) -> State | None:
        """Return the state of a checkpoint written since the last call, else None; raises the error of its write."""
        if self._pending is None or not (wait or self._pending.done()):
            return None
        # Cleared first, so that a failed write is reported once.
        done, self._pending = self._pending, None
        return done.result()

    def close(self) -> None:
        """Wait for a pending write, and release the folder."""
        self._pool.shutdown()
        if self._guard:
            self._guard.close()
            self._guard = None

    def _take_chat_template(self, newest: Path | None) -> None:
        """Give the tokenizer the chat template of the model that the run starts from, which a text dataset lacks."""
        # Now and not at the first save: that model's run may be training, and prune the checkpoint.
        start = self._config.train.init_from
        if start and not self._tokenizer.chat_template:
            self._tokenizer.chat_template = read_chat_template(newest or locate_checkpoint(start))

    def _open_guard(self) -> FolderGuard:
        """Create the run's folder if there was none at the start, and guard it."""
        if not self._guard:
            disk.make_dirs(self._run.path)
            self._guard = FolderGuard(self._run.path, RESUME_RUN)
        return self._guard

    def _write(self, taken: Snapshot, state: State) -> State:
        """Sync the logs, write the checkpoint, and only then prune older ones."""
        path, guard = self._run.checkpoint(state.step), self._open_guard()
        guard.check()
        # Before the checkpoint: a run resumed from it must find the rows of all its steps.
        self._run.sync_logs()
        checkpoint_io.save_checkpoint(path, taken, self._config.model, self._tokenizer, state, False)
        # Again, as the folder may have been moved during the write: older checkpoints go only once this one is in it.
        guard.check()
        self._retention.trust(path)
        self._retention.prune()
        return state
