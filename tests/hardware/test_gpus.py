"""Cards that are not here."""

from dataclasses import replace

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


def test_a_name_with_its_memory_has_that_memory() -> None:
    assert find_card("a100-40gb") == replace(CARDS["A100"], memory=40e9)
    assert find_card("V100 SXM2 16 GB").memory == 16e9
    assert find_card("NVIDIA A100-SXM4-80GB") == CARDS["A100"]


def test_a_card_that_is_none_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="h1000") as caught:
        find_card("h1000")
    assert "H100" in caught.value.why


def test_names_as_drivers_write_them() -> None:
    assert recognize_card("NVIDIA A100-SXM4-80GB") is CARDS["A100"]
    assert recognize_card("NVIDIA L40S") is CARDS["L40S"]
    assert recognize_card("NVIDIA L4") is CARDS["L4"]
    assert recognize_card("NVIDIA GeForce RTX 4090") is CARDS["RTX 4090"]
    assert recognize_card("NVIDIA GeForce GTX 1080") is None


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
        "V100": 150, "A100": 300, "H100": 450, "GH200": 450, "H200": 450, "B200": 900,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA L40", "L40"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti"),
        ("NVIDIA GeForce RTX 4090 D", "RTX 4090 D"),
        ("NVIDIA RTX A4000", "A4000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Quadro RTX 6000", None),
        ("NVIDIA GeForce RTX 3080 Ti Laptop GPU", None),
    ],
)
def test_a_longer_name_is_another_card(driver: str, name: str | None) -> None:
    assert recognize_card(driver) is (CARDS[name] if name else None)


def test_names_differ_in_more_than_neutral_words() -> None:
    assert all(find_card(name) is card and recognize_card(f"NVIDIA {name}") is card for name, card in CARDS.items())


def test_consumer_cards_have_half_the_rate_of_their_chip() -> None:
    """Sums in fp32: 512 FLOP per clock and multiprocessor, of the white papers."""
    chips = {"RTX 3080": (68, 1.71e9), "RTX 3090": (82, 1.695e9), "RTX 4080": (76, 2.505e9), "RTX 4090": (128, 2.52e9)}
    chips |= {"RTX 3060": (28, 1.777e9), "RTX 4070": (46, 2.475e9), "RTX 5090": (170, 2.407e9), "RTX 5080": (84, 2.617e9)}
    assert {name: CARDS[name].rate for name in chips} == pytest.approx(
        {name: 512 * cores * clock for name, (cores, clock) in chips.items()}, rel=0.01
    )


def test_a_card_before_ampere_trains_in_fp16() -> None:
    card = find_card("t4")
    assert world_of_card(card).precision.name == "fp16"
    with pytest.raises(UsageError, match="no bf16"):
        world_of_card(card, "bf16")
