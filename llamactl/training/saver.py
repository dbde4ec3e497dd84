"""Checkpoints written while training goes on: it waits for a copy of the tensors, not for the disk."""

from concurrent.futures import Future, ThreadPoolExecutor

from llamactl import checkpoint
from llamactl.artifacts import RunDir
from llamactl.checkpoint import Snapshot, State
from llamactl.config import Config
from llamactl.tokenizer import Tokenizer
from llamactl.training.sizing import free_main_memory


class Saver:
    """One checkpoint in flight at most; what went wrong with it surfaces at the next question."""

    def __init__(self, run: RunDir, config: Config, tokenizer: Tokenizer, leads: bool = True) -> None:
        """Save `run`, whose config and tokenizer are in every checkpoint. Of several processes the one that `leads` writes."""
        self._run, self._config, self._tokenizer, self._leads = run, config, tokenizer, leads
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._flying: Future[State] | None = None

    def save(self, taken: Snapshot, state: State) -> None:
        """Start to write a checkpoint; the one before must have been asked for with `landed(wait=True)`.

        Where memory is too short for a copy, training waits for the disk. It also does where processes hold parts of the
        tensors: they gather one at a time, and no process ever holds more than its own part and one tensor.
        """
        if not self._leads:
            if taken.sharded:
                taken.gather()
            return
        if taken.sharded:
            self._flying = Future()
            self._flying.set_result(self._write(taken, state))
            return
        roomy = 2 * taken.nbytes < free_main_memory()
        self._flying = self._pool.submit(self._write, taken.copied() if roomy else taken, state)
        if not roomy:
            self._flying.exception()

    def landed(self, wait: bool = False) -> State | None:
        """The state of a checkpoint that is on the disk since the last question; raises what writing it raised."""
        if self._flying is None or not (wait or self._flying.done()):
            return None
        flying, self._flying = self._flying, None
        return flying.result()

    def close(self) -> None:
        """Wait for what is being written."""
        self._pool.shutdown()

    def _write(self, taken: Snapshot, state: State) -> State:
        """The log's rows first, then the checkpoint, and only then is an older one removed."""
        train = self._config.train
        self._run.sync_logs()
        checkpoint.save(self._run.checkpoint(state.step), taken, self._config.model, self._tokenizer, state)
        checkpoint.prune(self._run, train.keep, train.keep_every)
        return state
