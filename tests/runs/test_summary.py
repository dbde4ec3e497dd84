"""What became of a run, read from its folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamactl.cli.runs import show_samples
from llamactl.config.schema import build_config
from llamactl.errors import InUse, UsageError
from llamactl.runs.run_dir import RunDir
from llamactl.runs.summary import compare_runs, remove_run, summarize_run
from llamactl.storage import atomic, locks
from tests.conftest import make_dataset


def make(name: str, steps: int, checkpoints: tuple[int, ...] = ()) -> RunDir:
    run = RunDir.from_name(name)
    run.start(build_config([{"train": {"tokens": 1000, "tokens_per_step": 100}, "data": {"name": "d"}}]), {"device": "cpu"})
    moments = [{"step": step, "tokens": step * 100, "seconds": step * 2.0} for step in range(1, steps + 1)]
    rows: list[dict[str, Any]] = [{"kind": "step", "loss": 9.0 - moment["step"], **moment} for moment in moments]
    rows += [{"kind": "validation", "loss": 5.0, "bits_per_byte": 2.0, **moment} for moment in moments[3:4]]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in checkpoints:
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "weights").write_bytes(bytes(1000))
    return run


def test_a_run_at_a_glance(home: Path) -> None:
    summary = summarize_run(make("a", 7, (4, 6)))
    assert (summary.name, summary.condition, summary.dataset, summary.preset) == ("a", "stopped", "d", "150m")
    assert (summary.step, summary.steps, summary.tokens, summary.seconds) == (7, 10, 700, 14.0)
    assert (summary.loss, summary.validation_loss, summary.bits_per_byte) == (2.0, 5.0, 2.0)
    assert summary.checkpoints == (4, 6)
    assert 2000 < summary.bytes < 10_000


def test_conditions(home: Path) -> None:
    done = summarize_run(make("done", 10, (10,)))
    assert done.condition == done.describe_condition() == "done"
    assert summarize_run(make("new", 0)).loss is None
    run = make("running", 3)
    with locks.hold_lock(run.lock_path):
        assert summarize_run(run).condition == "running"
        with pytest.raises(InUse):
            remove_run(run, sure=True)
    assert summarize_run(run).condition == "stopped"
    run.metrics_path.write_text("[]\n")
    assert summarize_run(run).condition == "damaged"


def test_the_newest_is_first_and_what_is_half_removed_is_none(home: Path) -> None:
    for name in ("a", "b", "c"):
        make(name, 1)
    RunDir.from_name("b").config_path.touch()
    make("gone", 1).path.rename(home / "runs" / ".gone.removed")
    assert [run.path.name for run in RunDir.all()] == ["b", "c", "a"]
    assert RunDir.from_name("").path.name == "b"


def test_only_who_is_sure_removes_a_run(home: Path) -> None:
    run = make("a", 7, (4,))
    with pytest.raises(UsageError) as caught:
        remove_run(run, sure=False)
    assert "llamactl runs remove a --yes" in caught.value.fix
    assert "7 steps" in caught.value.why
    assert run.path.exists()
    assert remove_run(run, sure=True).name == "a"
    assert list((home / "runs").iterdir()) == []


def test_samples_are_a_strip_for_each_prompt(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make("a", 3)
    rows = [
        {"kind": "sample", "step": step, "prompt": prompt, "text": f"{prompt} {step}\x1b[2J\n"}
        for step in (2, 1, 2)
        for prompt in ("The", "A")
    ]
    run.samples_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run.samples() == {prompt: {step: f"{prompt} {step}\x1b[2J\n" for step in (2, 1)} for prompt in ("The", "A")}
    show_samples(run.samples(), as_json=False)
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "The"
    assert said.splitlines()[1].split()[:3] == ["1", "The", "1\\x1b[2J"]
    assert "\x1b[2J" not in said
    show_samples(run.samples(), as_json=True)
    assert [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()] == [1, 2, 1, 2]


def log(run: RunDir, losses: dict[int, float], speeds: list[float]) -> None:
    """Rows whose validation is as given by step, and a step row for each speed."""
    rows: list[dict[str, Any]] = [
        {"kind": "step", "step": step, "tokens": step * 100, "seconds": step * 2.0, "tokens_per_second": speed, "memory": step}
        for step, speed in enumerate(speeds, 1)
    ]
    rows += [{"kind": "validation", "step": step, "loss": loss, "bits_per_byte": loss / 3} for step, loss in losses.items()]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def begun(name: str, config: dict[str, Any], digest: str, **made_with: Any) -> RunDir:
    run = RunDir.from_name(name)
    run.start(build_config([config]), {"dataset": {"name": "d", "digest": digest}, **made_with})
    return run


def test_only_what_differs_is_beside_the_results(home: Path) -> None:
    settings = {"data": {"name": "d"}, "train": {"tokens": 1000, "precision": "fp32"}}
    first = begun("a", settings, "1", device="cpu", threads=1, packages={"torch": "2.11", "numpy": "2.0"}, commit="x")
    settings |= {"optim": {"lr": 0.5}, "preset": "tiny"}
    second = begun("b", settings, "1", device="cpu", threads=4, packages={"torch": "2.13", "numpy": "2.1"}, commit="y")
    log(first, {2: 4.0, 3: 5.0}, [10.0, 1000.0, 30.0])
    log(second, {}, [7.0])
    compared = compare_runs([first, second])
    assert compared.names == ("a", "b")
    assert compared.settings == {"preset": ("150m", "tiny"), "optim.lr": (0.0, 0.5)}
    assert compared.environment == {"threads": (1, 4), "torch": ("2.11", "2.13")}
    assert compared.results == {
        "step": (3, 1),
        "tokens": (300, 100),
        "validation": (5.0, None),
        "bits_per_byte": (5 / 3, None),
        "best_validation": (4.0, None),
        "seconds": (6.0, 2.0),
        "tokens_per_second": (30.0, 7.0),
        "memory": (3, 1),
    }
    assert compared.cautions == ()


def test_a_comparison_states_the_loss_that_the_summary_does(home: Path) -> None:
    """That of the whole split, where the last checkpoint was evaluated on it."""
    runs = [begun(name, {"data": {"name": "d"}}, "1") for name in "ab"]
    for run in runs:
        log(run, {2: 4.0, 3: 5.0}, [10.0, 20.0, 30.0])
    with runs[0].metrics_path.open("a") as file:
        file.write(json.dumps({"kind": "evaluation", "step": 3, "loss": 4.5, "bits_per_byte": 1.5}) + "\n")
    results = compare_runs(runs).results
    assert results["validation"] == (4.5, 5.0) == tuple(summarize_run(run).validation_loss for run in runs)
    assert results["bits_per_byte"] == (1.5, 5 / 3) == tuple(summarize_run(run).bits_per_byte for run in runs)
    assert results["best_validation"] == (4.0, 4.0)


@pytest.mark.parametrize(
    ("pair", "gone", "says"),
    [
        (("bytes", "bytes"), "", "losses compare as far as the held-out text is alike"),
        (("bytes", "bpe:300"), "", "Their tokenizers differ: only bits per byte compares"),
        (("bytes", "bytes"), "1", "not known to be the same: only bits per byte compares"),
    ],
)
def test_losses_on_other_data_do_not_pass_for_comparable(
    home: Path, corpus: Path, pair: tuple[str, str], gone: str, says: str
) -> None:
    runs = []
    for number, tokenizer in enumerate(pair):
        data = make_dataset(home / "data" / f"{number}", corpus, tokenizer, val_fraction=0.1 + number / 10)
        runs.append(begun(f"run-{number}", {"data": {"name": f"{number}"}}, data.info().digest))
    if gone:
        atomic.remove_folder(home / "data" / gone)
    compared = compare_runs(runs)
    (said,) = compared.cautions
    assert says in said
    assert set(compared.environment) == {"dataset"}


def test_a_shorter_validation_is_said(home: Path) -> None:
    runs = [begun(f"run-{tokens}", {"train": {"eval_tokens": tokens}}, "1") for tokens in (1000, 2000)]
    (said,) = compare_runs(runs).cautions
    assert "different amounts" in said


def test_one_run_differs_from_nothing(home: Path) -> None:
    with pytest.raises(UsageError, match="two runs or more"):
        compare_runs([begun("a", {}, "1")])
