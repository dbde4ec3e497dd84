"""What is typed between prompts, what can be changed while one talks to a model, and what can't."""

from pathlib import Path

import pytest

from llamactl.cli.bounds import BOUNDS
from llamactl.cli.ui.prompt_loop import SETTINGS, apply_slash_command, read_typed_lines
from llamactl.errors import UsageError
from llamactl.inference.generate import Request
from tests.cli.inline import type_in

USUAL = Request(())


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("/temperature 0.7", "temperature", 0.7),
        ("/top-k 40", "top_k", 40),
        ("/top-p 0.9", "top_p", 0.9),
        ("/min-p 0.05", "min_p", 0.05),
        ("/repetition-penalty 1.2", "repetition_penalty", 1.2),
    ],
)
def test_how_tokens_are_picked_can_be_changed(line: str, name: str, value: float) -> None:
    assert getattr(apply_slash_command(line, USUAL).pick, name) == value
    assert apply_slash_command(line, USUAL).max_new_tokens == USUAL.max_new_tokens


def test_length_and_seed_can_be_changed() -> None:
    assert apply_slash_command("/max-new-tokens 7", USUAL).max_new_tokens == 7
    assert apply_slash_command("/seed 3", USUAL).seed == 3


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/temprature 1", "'temperature'"),
        ("/temperature x", "/temperature 0.8"),
        ("/top-p 2", "takes"),
        ("/temperature -1", "takes"),
        ("/temperature nan", "takes"),
        ("/max-new-tokens 0", "takes 1 to"),
        ("/top-k 1.5", "number"),
        ("/seed", "number"),
        ("/repetition-penalty 0.5", "takes"),
        ("/", "Choose"),
        ("/temperature inf", "takes"),
        ("/top-k " + "9" * 400, "takes"),
        ("/max-new-tokens " + "9" * 20, "takes 1 to 10000000"),
        ("/seed " + "9" * 20, "takes 0 to"),
        ("/seed " + "9" * 5_000, "number"),
    ],
)
def test_what_can_not_be_is_said(line: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply_slash_command(line, USUAL)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300
    assert set(SETTINGS) >= {"temperature", "seed"}


@pytest.mark.parametrize("name", BOUNDS)
def test_the_bounds_are_those_of_the_options(name: str) -> None:
    least, most = BOUNDS[name]
    for beyond in (least - 1, most + 1):
        assert f"Invalid value for '--{name}'" in type_in("sample", "a", f"--{name}", str(beyond)).err
        with pytest.raises(UsageError):
            apply_slash_command(f"/{name} {beyond}", USUAL)
    assert apply_slash_command(f"/{name} {most}", USUAL)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_bytes_of_another_encoding_are_told_and_the_next_line_is_read(
    encoding: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are surrogates where the locale is ASCII, and an error of Python's elsewhere."""
    typed = iter([b"\xe9t\xe9", b"next"])

    def read(_: str) -> str:
        try:
            return next(typed).decode(encoding, "surrogateescape" if encoding == "ascii" else "strict")
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert list(read_typed_lines(".history")) == ["next"]
    assert "not UTF-8" in capsys.readouterr().err
