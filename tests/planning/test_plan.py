"""The receipt: what is worked out before the first step."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from llamactl.config.parameters import num_embedding_params, num_params
from llamactl.config.schema import Config, build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import World, init_device, world_of_card
from llamactl.errors import DataError, OutOfSpace, UsageError
from llamactl.hardware.gpus import find_card
from llamactl.model.llama import Llama
from llamactl.optim.build import CONTINUED_RATE, OPTIMIZERS
from llamactl.planning import batch_size
from llamactl.planning import plan as planning_plan
from llamactl.planning.alternatives import plan_budgets
from llamactl.planning.budget import advise_budget
from llamactl.planning.fit import check_memory
from llamactl.planning.flops import flops_per_token, update_flops
from llamactl.planning.memory import state_bytes
from llamactl.planning.memory_estimate import WORKSPACES, estimate_memory
from llamactl.planning.plan import make_plan
from llamactl.planning.resolve import ROOMY, resolve_config
from llamactl.planning.step_time import LOADING, StepTime, estimate_step_time
from llamactl.units import show_count

Configured = Callable[..., tuple[Config, World]]
ROOM = 64 * 10**9  # bytes, whatever this machine has free


def planned(dataset: Dataset, *layers: dict[str, object], memory: int = ROOM) -> tuple[Config, planning_plan.Plan]:
    config = build_config([preset_settings("150m"), {"train": {"device": "cpu"}}, *layers])
    world = replace(init_device(config.train), memory_override=memory)
    config = resolve_config(config, dataset, world)
    return config, make_plan(config, dataset, world, rate=1e12)


@pytest.mark.parametrize(
    ("tokens", "low", "high"),
    [
        (256_000, 3_000, 6_000),
        (3_311_616, 3_000, 4_500),
        (10**8, 36_000, 42_000),
        (13 * 10**8, 250_000, 290_000),
        (10**11, 524_288, 524_288),
    ],
)
def test_tokens_per_step_follow_from_the_budget(dataset: Dataset, tokens: int, low: int, high: int) -> None:
    config, _ = planned(dataset, {"train": {"tokens": tokens}})
    assert low <= config.train.tokens_per_step <= high
    assert config.train.tokens_per_step % config.model.context == 0


def test_no_zeros_are_left_and_resolving_again_changes_nothing(dataset: Dataset) -> None:
    config, _ = planned(dataset, {"train": {"tokens": 256_000}})
    numbers = {
        **config.train.model_dump(exclude={"seed", "keep_every", "dropout", "patience"}),
        **config.model.model_dump(exclude={"rope_original_context"}),
        "lr": config.optim.lr,
    }
    assert all(value != 0 for value in numbers.values() if not isinstance(value, bool))
    assert resolve_config(config, dataset, init_device(config.train)) == config


def test_trained_weights_learn_more_slowly_unless_a_rate_is_given(dataset: Dataset) -> None:
    fresh, _ = planned(dataset)
    continued, _ = planned(dataset, {"train": {"init_from": "a@1"}})
    assert continued.optim.lr == pytest.approx(CONTINUED_RATE * fresh.optim.lr)
    given, _ = planned(dataset, {"train": {"init_from": "a@1"}, "optim": {"lr": 0.5}})
    assert given.optim.lr == 0.5


def test_the_receipt_adds_up(dataset: Dataset) -> None:
    config, made = planned(dataset, {"train": {"tokens": 256_000}})
    assert made.parameters == num_params(config.model)
    assert made.steps * made.tokens_per_step == made.tokens >= 256_000
    assert made.tokens - 256_000 < made.tokens_per_step
    assert made.flops == made.tokens * flops_per_token(config.model)
    assert advise_budget(made, config.train).startswith("This is a smoke test")


@pytest.mark.parametrize(("dropout", "epochs"), [(0.0, 4), (0.2, 16)])
def test_the_advised_budget_is_as_many_epochs_as_pay(dropout: float, epochs: int, dataset: Dataset) -> None:
    """Also in the table of budgets."""
    tokens = dataset.info.total("train", "tokens")
    over: dict[str, object] = {"train": {"dropout": dropout, "tokens": 18 * tokens, "device": "cpu"}}
    config, made = planned(dataset, over)
    assert made.worthwhile_tokens == pytest.approx(epochs * tokens, rel=0.01)
    assert f"above {epochs} it" in advise_budget(made, config.train)
    assert advise_budget(made, config.train).endswith(f"--tokens {show_count(made.worthwhile_tokens)}")
    budgets = plan_budgets(config, dataset, init_device(config.train), 1e11)
    assert min(plan.epochs for plan in budgets) == pytest.approx(epochs, rel=0.05)


def test_the_vocabulary_is_padded_to_128(dataset: Dataset) -> None:
    config, _ = planned(dataset)
    assert config.model.vocab_size == 512
    with pytest.raises(UsageError, match="512 token ids"):
        planned(dataset, {"model": {"vocab_size": 256}})


def test_flops_are_palms() -> None:
    """798 MFLOP a token for 150m with GPT-2's vocabulary, of which attention is 113."""
    model = build_config([preset_settings("150m")]).model.model_copy(update={"vocab_size": 50_304})
    assert flops_per_token(model) == pytest.approx(798.0e6, rel=1e-3)
    assert 6 * (num_params(model) - num_embedding_params(model)) < flops_per_token(model)


def test_what_is_too_small_or_too_big_is_said_before_the_first_step(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="too small"):
        planned(dataset, {"model": {"context": 10**6}})


def fitting(config: Config, made: planning_plan.Plan, world: World, room: int) -> str:
    """What would fit into so much memory."""
    small = replace(world, memory_override=room)
    with pytest.raises(OutOfSpace, match="does not fit") as caught:
        check_memory(replace(made, memory_free=room), config, small)
    assert caught.value.code == 4
    return caught.value.fix


def test_what_does_not_fit_is_said_with_what_would(dataset: Dataset) -> None:
    config, made = planned(dataset, {"train": {"micro_batch": 8}})
    world = replace(init_device(config.train), memory_override=ROOM)
    check_memory(made, config, world)
    held = made.memory.weights + made.memory.gradients + made.memory.optimizer
    assert fitting(config, made, world, made.memory.required_bytes - 1).endswith("--set train.micro_batch=4")
    assert fitting(config, made, world, held + made.memory.activations // 3).endswith("train.micro_batch=2")
    assert fitting(config, made, world, held + made.memory.update).endswith("train.micro_batch=1")
    assert fitting(config, made, world, 10**9).endswith("--preset 50m")
    assert fitting(config, made, world, 10**6) == "Train on a device with more memory."


def test_micro_batches_are_dealt_out_evenly(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "MICRO_TOKENS", {"cpu": 5 * 1024})
    config, _ = planned(dataset, {"train": {"tokens": 256_000, "tokens_per_step": 14 * 1024}})
    assert config.train.micro_batch == 5


def test_many_epochs_are_counted(dataset: Dataset) -> None:
    _, made = planned(dataset, {"train": {"tokens": 10 * dataset.info.total("train", "tokens")}})
    assert made.epochs == pytest.approx(10, rel=0.1)


def test_micro_batches_are_all_alike_where_nobody_asked_for_more(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "MICRO_TOKENS", {"cpu": 4 * 1024})
    config, _ = planned(dataset, {"train": {"tokens": 256_000}})
    assert config.train.tokens_per_step == 4 * 1024
    assert config.train.micro_batch == 4


def test_long_runs_are_compiled(dataset: Dataset) -> None:
    assert planned(dataset, {"train": {"tokens": 256_000}})[0].train.compile == "on"
    assert planned(dataset, preset_settings("tiny"), {"train": {"tokens": 100_000}})[0].train.compile == "off"
    assert planned(dataset, {"train": {"tokens": 256_000, "compile": "off"}})[0].train.compile == "off"


def test_activations_are_recomputed_where_they_would_not_fit(dataset: Dataset) -> None:
    config, roomy = planned(dataset)
    assert config.train.activation_checkpointing == "off"
    state = state_bytes(config.model, "muon")
    config, tight = planned(dataset, memory=int(1.9 * state))
    assert (config.train.activation_checkpointing, config.train.micro_batch) == ("on", 1)
    assert tight.memory.activations < roomy.memory.activations / 2


def test_a_step_is_worth_its_update(dataset: Dataset) -> None:
    """Muon's products are about three sevenths of a step's work, rounding aside, however small the budget."""
    for name in ("tiny", "10m", "50m", "150m"):
        config, _ = planned(dataset, preset_settings(name), {"train": {"tokens": 100_000}})
        work = config.train.tokens_per_step * flops_per_token(config.model)
        assert update_flops(config.model, "muon") < work / 2
    assert update_flops(config.model, "adamw") == 0


def test_update_flops_are_those_of_the_products(dataset: Dataset) -> None:
    """Counted by torch while the optimizer runs."""
    from torch.utils.flop_counter import FlopCounterMode

    config, _ = planned(dataset, preset_settings("tiny"))
    model = Llama(config.model)
    muon = OPTIMIZERS["muon"](model, config.optim, torch.float32)[0]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with FlopCounterMode(display=False) as counter:
        muon.step()
    assert counter.get_total_flops() == pytest.approx(update_flops(config.model, "muon"), rel=1e-6)


def test_three_budgets_grow_in_steps_time_and_what_they_teach(dataset: Dataset) -> None:
    config = build_config([preset_settings("tiny"), {"train": {"device": "cpu", "tokens": 2_048, "tokens_per_step": 256}}])
    world = init_device(config.train)
    found = plan_budgets(config, dataset, world, rate=1e12)
    assert [plan.tokens for plan in found[:2]] == [2_048, 20_480]
    assert found[2].epochs == pytest.approx(4, rel=0.05)  # so much is this little data worth
    times = [plan.duration.total for plan in found]
    assert times == sorted(times)
    losses = [plan.loss.loss for plan in found if plan.loss]
    assert losses == sorted(losses, reverse=True)
    measured = StepTime(2 * estimate_step_time(resolve_config(config, dataset, world), world, 1e12).step, start=7.0)
    slower = plan_budgets(config, dataset, world, 1e12, measured)
    for estimated, probed in zip(found, slower, strict=True):
        assert probed.duration.steps == pytest.approx(2 * estimated.duration.steps, rel=0.01)
        assert probed.duration.start in (7.0, 7.0 + LOADING)  # the compiler's, where the run is long enough for it


def test_what_was_never_measured_gets_no_loss(dataset: Dataset) -> None:
    assert planned(dataset, preset_settings("tiny"))[1].loss
    assert planned(dataset, preset_settings("tiny"), {"optim": {"name": "adamw"}})[1].loss is None
    assert planned(dataset, preset_settings("tiny"), {"train": {"init_from": "a@1"}})[1].loss is None


@pytest.mark.parametrize(
    ("preset", "train", "resolved"),
    [
        ("tiny", {}, "graphs"),
        ("10m", {}, "graphs"),
        ("150m", {"micro_batch": 32}, "on"),
        ("tiny", {"micro_batch": 3, "tokens_per_step": 4 * 256}, "on"),
        ("tiny", {"compile": "on"}, "on"),
        ("150m", {"micro_batch": 32, "compile": "graphs"}, "graphs"),
        ("tiny", {"tokens": 10_000}, "off"),
    ],
)
def test_small_micro_batches_of_a_gpu_are_replayed(
    preset: str, train: dict[str, object], resolved: str, dataset: Dataset
) -> None:
    """Where they are all alike; others, and runs that are too short to compile, are not."""
    config = build_config([preset_settings(preset), {"train": {"tokens": 10**9, **train}}])
    assert resolve_config(config, dataset, world_of_card(find_card("h100"))).train.compile == resolved
    two = replace(world_of_card(find_card("h100")), size=2, local_world_size=2)
    assert (resolve_config(config, dataset, two).train.compile == "graphs") == (train.get("compile") == "graphs")
    assert planned(dataset, config.model_dump())[0].train.compile != "graphs" or train.get("compile") == "graphs"


def test_documents_kept_apart_are_not_replayed(dataset: Dataset) -> None:
    config = build_config([preset_settings("tiny"), {"train": {"tokens": 10**9}, "data": {"separate_documents": True}}])
    assert resolve_config(config, dataset, world_of_card(find_card("h100"))).train.compile == "on"


def test_a_graph_keeps_its_memory_beside_the_updates(dataset: Dataset) -> None:
    config = build_config([preset_settings("tiny"), {"train": {"tokens": 10**9}}])
    world = world_of_card(find_card("h100"))
    graphed = resolve_config(config, dataset, world)
    estimates = [estimate_memory(graphed.with_train(compile=each), world) for each in ("graphs", "on")]
    assert estimates[0].graph == WORKSPACES + min(estimates[1].update, estimates[1].activations + estimates[1].logits)
    assert estimates[0].total == estimates[1].total + estimates[0].graph
    # A card on which only the plain run fits.
    bytes_needed = int((estimates[0].required_bytes - 1) / ROOMY)
    tight = resolve_config(graphed.with_train(compile="auto"), dataset, replace(world, memory_override=bytes_needed))
    assert tight.train.compile == "on"
