"""Judge the budget of a planned run: what is refused, and what is advised instead."""

from llamactl.config.schema import TrainConfig
from llamactl.errors import UsageError
from llamactl.planning.defaults import WORTHWHILE_EPOCHS
from llamactl.planning.plan import Plan
from llamactl.units import show_count

# Budgets above these are taken for mistakes, such as --tokens meant for a larger corpus or for a GPU.
MOST_EPOCHS = 20
MOST_DAYS = 30
SMOKE_TEST = 0.5  # tokens per parameter below which a run only shows that everything works
ROUNDING = 1.005  # budgets are shown with three digits
MARGIN = 2  # another budget has other steps: its time is not in proportion
DAY = 86_400


def advise_budget(plan: Plan, train: TrainConfig) -> str:
    """Return a sentence on a budget that teaches little, with a better one; empty for a sensible one."""
    most = plan.worthwhile_epochs
    # The last step may exceed the budget, and with little text a step is a good part of an epoch.
    if plan.epochs * (1 - 1 / plan.steps) > ROUNDING * most:
        without = "" if train.dropout else " without --set train.dropout=0.2"
        seen = f"it will be seen {plan.epochs:.1f} times, and above {most} it teaches little more{without}"
        return f"Your text is the limit: {seen}. {_worthwhile(plan)}"
    # Trained weights may need few tokens. Four epochs are what `train` takes by itself.
    if not train.init_from and plan.tokens_per_parameter < SMOKE_TEST and plan.epochs < WORTHWHILE_EPOCHS:
        return f"This is a smoke test: {plan.tokens_per_parameter:.2g} tokens per parameter teach little. {_worthwhile(plan)}"
    return ""


def _worthwhile(plan: Plan) -> str:
    """Name the budget that is worth training; where this device is too slow for it, a time, which chooses a size too."""
    days = plan.duration.total / DAY * plan.worthwhile_tokens / plan.tokens
    budget = f"--tokens {show_count(plan.worthwhile_tokens)}" if MARGIN * days <= MOST_DAYS else "--time 1d"
    return f"Worth training: {budget}"


def check_budget(plan: Plan) -> None:
    """Check that a budget is sensible for this data and device; raises UsageError with one that is."""
    days = plan.duration.total / DAY
    if plan.epochs > MOST_EPOCHS:
        what = f"After {plan.epochs:,.0f} epochs a model knows its text by heart."
    elif days > MOST_DAYS:
        what = f"This would take {days:,.0f} days."
    else:
        return
    data, per_day = show_count(plan.tokens / plan.epochs), show_count(plan.tokens / days)
    why = f"The text has {data} tokens; this device trains on {per_day} per day."
    raise UsageError(what, why, f"{_worthwhile(plan)}. To train anyway, add --yes.")
