"""Cards that are not here."""

import pytest

from llamactl.config.schema import build_config, preset_settings
from llamactl.corpus.dataset import Dataset
from llamactl.distributed.context import world_of_card
from llamactl.errors import UsageError
from llamactl.hardware.gpus import CARDS, find_card, recognize_card
from llamactl.planning.plan import make_plan
from llamactl.planning.resolve import resolve_config


@pytest.mark.parametrize("name", ["rtx4090", "RTX 4090", "4090", "RTX-4090", "NVIDIA RTX 4090"])
def test_names_as_people_write_them(name: str) -> None:
    assert find_card(name) is CARDS["RTX 4090"]


def test_a_card_that_is_none_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="h1000") as caught:
        find_card("h1000")
    assert "H100" in caught.value.why


def test_names_as_drivers_write_them() -> None:
    assert recognize_card("NVIDIA A100-SXM4-80GB") is CARDS["A100"]
    assert recognize_card("NVIDIA L40S") is CARDS["L40S"]
    assert recognize_card("NVIDIA L4") is CARDS["L4"]
    assert recognize_card("NVIDIA GeForce RTX 4090") is CARDS["RTX 4090"]
    assert recognize_card("NVIDIA T4") is None


def test_a_run_is_planned_for_a_card_without_one(dataset: Dataset) -> None:
    """The notebook's own card: what it did in four to six hours takes one."""
    config = build_config([preset_settings("150m"), {"train": {"tokens": 181_000_000}}])
    card = find_card("a4000")
    made = make_plan(resolve_config(config, dataset, world_of_card(card)), dataset, world_of_card(card), card.rate)
    assert made.memory.total < card.memory
    assert made.memory.saving == 0  # the copy is in main memory
    assert 0.5 < made.duration.total / 3600 < 2


def test_a_cards_rate_is_that_of_16_bits() -> None:
    card = find_card("h100")
    assert [world_of_card(card, precision).precision.name for precision in ("auto", "bf16", "fp16")] == ["bf16", "bf16", "fp16"]
    with pytest.raises(UsageError, match="fp32"):
        world_of_card(card, "fp32")


def test_links_are_those_of_one_direction() -> None:
    """NVLink's data sheets count both; all others are in a slot of PCIe 4.0, whose 16 lanes have 31.5 GB/s."""
    assert {name: card.link_bandwidth / 1e9 for name, card in CARDS.items() if card.link_bandwidth > 31.5e9} == {
        "A100": 300, "H100": 450, "H200": 450, "B200": 900,
    }  # fmt: skip
