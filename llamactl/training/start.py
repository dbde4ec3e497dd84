"""Begin or resume a run: check what may not change, then write its config, its environment and its plan."""

from contextlib import suppress
from dataclasses import asdict

from llamactl.checkpoint.select import read_newest_state
from llamactl.config.schema import Config
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World
from llamactl.errors import UserError
from llamactl.planning.plan import Plan
from llamactl.runs.run_dir import RunDir
from llamactl.training.provenance import check_same_data, collect_environment
from llamactl.training.resumption import check_changed_settings, known_settings, trained_on


def start_run(run: RunDir, config: Config, dataset: Dataset, world: World, plan: Plan, resumed: bool) -> None:
    """Write the config, the environment and the plan of a run before its first step; the caller holds its lock.

    Nothing is written where a run that is `resumed` would become another one, which raises UsageError or DataError.
    """
    environment = collect_environment(config, dataset, world)
    if resumed:
        state = read_newest_state(run)
        check_changed_settings(known_settings(run, state), config)
        if digest := trained_on(run, state):
            check_same_data({"dataset": {"digest": digest}}, environment)
    run.start(config, environment, resumed)
    if not (resumed and _is_planned(run, plan)):
        run.keep_plan(asdict(plan))


def _is_planned(run: RunDir, plan: Plan) -> bool:
    """Check whether a run has a plan of the same budget, with which its results are compared."""
    with suppress(UserError):
        return run.plan().get("tokens") == plan.tokens
    return False
