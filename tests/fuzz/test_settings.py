"""Every setting meets twenty values: it works, or is refused with its bounds; none is a bug, and none takes long.

`llamactl/config/schema.py` makes that so: each field is strict and has bounds, and numbers are finite.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from llamactl import cli
from llamactl.config.describe import all_settings
from llamactl.config.schema import Config, build_config
from llamactl.errors import UsageError
from tests.conftest import TINY

SHAPE: dict[str, int] = TINY["model"]  # type: ignore[assignment]

VALUES = (
    "0", "1", "-1", "2", "7", "64", "1.5", "true", "inf", "nan", "1e400", "1e-45", "9223372036854775807", "9223372036854775808",
    "9" * 5_000, "1e18", "''", "x", "[1]", "{a=1}",
)  # fmt: skip
ALLOWED = {0, 2, 3, 4}
PATIENCE = 10  # seconds


@pytest.fixture
def typed(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Type a command in this process: its exit code, and what it said."""
    monkeypatch.setenv("LLAMACTL_HOME", str(whole))
    monkeypatch.setattr("llamactl.hardware.throughput.peak_flops", lambda device, dtype: 1e10)

    def typed(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["llamactl", *words])
        signal.alarm(PATIENCE)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        signal.alarm(0)
        return int(ended.value.code or 0), capfd.readouterr().err

    def hang(_: int, __: FrameType | None) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hang)
    yield typed
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", [knob.name for knob in all_settings()])
def test_a_setting_works_or_is_refused(name: str, typed: Callable[..., tuple[int, str]]) -> None:
    assert len(VALUES) == 20
    shape = [word for key, value in SHAPE.items() for word in ("--set", f"model.{key}={value}")]
    for number, value in enumerate(VALUES):
        command = ["train", "--dry-run"] if number % 2 else ["plan"]
        code, told = typed(*command, "--data", "d", "--preset", "tiny", "--tokens", "5120", *shape, "--set", f"{name}={value}")
        assert code in ALLOWED, f"{name}={value[:20]}: {code}\n{told}"
        assert "Traceback" not in told
        if code == 2 and name not in ("train.device", "data.name"):
            assert name in told or "contradict" in told or "init_from" in told or "rope" in told, told


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"model": {"norm_eps": float("inf")}}, "finite number"),
        ({"optim": {"eps": float("nan")}}, "finite number"),
        ({"model": {"rope_theta": float("inf")}}, "finite number"),
        ({"optim": {"max_grad_norm": float("inf")}}, "finite number"),
        ({"optim": {"max_grad_norm": True}}, "valid number"),
        ({"model": {"n_layers": True}}, "valid integer"),
        ({"train": {"tokens": True}}, "valid integer"),
        ({"model": {"ffn_dim": 2**63}}, "less than or equal to 1048576"),
        ({"model": {"context": 10**12}}, "less than or equal to 16777216"),
        ({"train": {"seed": 2**63}}, "should be less than"),
        ({"data": {"seed": -1}}, "greater than or equal to 0"),
        ({"optim": {"eps": 1e-45}}, "greater than or equal to"),
        ({"model": {"head_dim": 3}}, "multiple of 2"),
        ({"train": {"deterministic": 1}}, "valid boolean"),
        ({"model": {"dim": "64"}}, "valid integer"),
    ],
)
def test_what_is_refused_is_said_with_the_bound(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build_config([setting])


def test_every_number_has_bounds_and_numbers_of_toml_work() -> None:
    for knob in all_settings():
        if type(knob.default) in (int, float):
            assert "at least" in knob.takes or "above" in knob.takes, knob.name
            assert "at most" in knob.takes or "below" in knob.takes, knob.name
    config = build_config(
        [{"optim": {"lr": 1, "max_grad_norm": 2}, "train": {"tokens": 1e6, "seed": 2**63 - 1, "prompts": ["a"]}}]
    )
    assert (config.optim.lr, config.optim.max_grad_norm, config.train.tokens, config.train.prompts) == (
        1.0,
        2.0,
        1_000_000,
        ("a",),
    )
    assert build_config([config.model_dump(mode="json")]) == config != Config()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    ["model.dim=1", "model.ffn_dim=1", "model.context=1", "model.n_layers=1", "model.vocab_size=300", f"train.seed={2**63 - 1}",
     f"data.seed={2**63 - 1}", "train.micro_batch=1", "train.tokens_per_step=1", "optim.normuon_beta2=0",
     "model.rope_scaling=1000000", "model.norm_eps=1", "optim.max_grad_norm=1e-9", "optim.name=adamw", "train.sample_tokens=1"],
)  # fmt: skip
def test_the_smallest_and_the_largest_train(settings: str, own: Path, servers: Any) -> None:
    server = servers.get()
    words = ["train", "--config", "runs/a/config.toml", "--run", "c", "--tokens", "256", "--set", settings]
    answer = server.run(own, words)
    servers.put(server)
    assert answer["code"] in (0, 2, 6), answer["told"]
    assert answer["code"] != 2 or settings.partition("=")[0] in answer["told"]


@pytest.mark.parametrize(
    "words",
    ["--temperature inf", "--temperature nan", "--temperature 1e-45", "--temperature 101", "--repetition-penalty 1e39",
     "--repetition-penalty nan", "--top-p nan", "--min-p nan", "--min-p 2", "--top-k 99999999999999", "--n 99999999999",
     "--max-new-tokens 99999999999", "--seed 9223372036854775808", "--seed -1"],
)  # fmt: skip
def test_how_tokens_are_drawn_has_bounds(words: str, typed: Callable[..., tuple[int, str]]) -> None:
    code, told = typed("sample", "x", "--run", "a", *words.split())
    assert code == 2, told
    assert words.split()[0].lstrip("-") in told


@pytest.mark.parametrize("words", ["--temperature 0", "--temperature 0.01", "--temperature 100", "--seed 9223372036854775807"])
def test_what_is_within_bounds_works(words: str, typed: Callable[..., tuple[int, str]]) -> None:
    code, told = typed("sample", "x", "--run", "a", "--max-new-tokens", "3", *words.split())
    assert code == 0, told
