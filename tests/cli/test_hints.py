"""Commands that are named as the next ones: they do what is meant, also where there are other runs, and words have spaces."""

import os
import shlex
from pathlib import Path

import pytest

from llamactl.cli.hints import command_line, name_unless_newest, sample_next
from llamactl.cli.ui.live import Course
from llamactl.cli.ui.training import TrainingScreen
from llamactl.config.schema import build_config
from llamactl.runs.run_dir import RunDir
from llamactl.training.events import Evaluated, Saved
from tests.cli.inline import type_in


@pytest.fixture
def two(home: Path) -> tuple[RunDir, RunDir]:
    """Two runs, of which the second is the newest."""
    runs = RunDir.from_name("a"), RunDir.from_name("b")
    for number, run in enumerate(runs):
        run.start(build_config([{"data": {"name": "d"}, "train": {"prompts": ["It's "]}}]), {})
        os.utime(run.config_path, (number, number))
    return runs


def test_a_run_is_named_unless_it_is_the_newest(two: tuple[RunDir, RunDir]) -> None:
    assert [name_unless_newest(run) for run in two] == [["a"], []]
    assert shlex.split(sample_next(two[0])) == ["llamactl", "sample", "It's ", "--run", "a"]
    assert shlex.split(sample_next(two[1])) == ["llamactl", "sample", "It's "]


def test_the_end_of_training_names_its_run(two: tuple[RunDir, RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    for run, words in zip(two, ("llamactl plot-loss a", "llamactl plot-loss"), strict=True):
        TrainingScreen(Course("", 1, 1, 1, 0.0), run).show_end(failed=False)
        assert capsys.readouterr().err.rstrip().endswith(words)


def test_the_checkpoint_named_at_the_end_is_the_one_that_was_evaluated(
    two: tuple[RunDir, RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    """With patience that is the best one, and newer ones were saved."""
    run = two[1]
    screen = TrainingScreen(Course("", 10, 1, 1, 0.0), run)
    screen.show(Saved(7, 7, 1.0, 7.0, str(run.checkpoint(7))))
    screen.show(Evaluated(4, 4, 1.0, 4.0, 3.0, 1.0, 100))
    screen.show_end(failed=False)
    said = capsys.readouterr().err
    assert run.checkpoint(4).name in said
    assert run.checkpoint(7).name not in said


@pytest.mark.parametrize("text", ["a b", "-x", "--", "it's", "", "$HOME"])
def test_a_text_is_one_word_and_never_an_option(text: str) -> None:
    words = shlex.split(command_line("prepare", ["first", text], ["--name", "n"]))
    texts = words[words.index("--") + 1 :] if text.startswith("-") else words[1:3]
    assert texts == ["first", text]


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_the_folder_of_an_export_may_have_spaces(
    kind: str, two: tuple[RunDir, RunDir], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = home / "my out" / "a.gguf"
    written.parent.mkdir()
    written.touch()
    monkeypatch.setattr(
        "llamactl.checkpoint.select.retry_while_pruned", lambda *_: written if kind == "hf" else (written, False)
    )
    said = type_in("export", kind, "a").err
    assert shlex.quote(str(written)) in said
