"""docs/scale.md: its commands parse, its scripts run, and the numbers that hang together do."""

import ast
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from llamactl.cli import app

TEXT = (Path(__file__).parents[1] / "docs" / "scale.md").read_text("utf-8")
COMMANDS = re.sub(
    r'"\$(@|\{words\[@\]\})"', "", TEXT.replace("\\\n", " ")
)  # a command a line, without what stands for its last words
TORCHRUN = [line.rstrip("& \"'") for line in re.findall(r"torchrun +--.*", COMMANDS)]
SAID = re.findall(r"(?:words=\(|set -- )(.*?)\)?$", COMMANDS, re.M)  # those words
OURS = [*SAID, *re.findall(r"-m llamactl train (.+)", "\n".join(TORCHRUN))]
BASH = re.findall(r"```bash\n(.*?)```", TEXT, re.S)
SLURM = next(script for script in BASH if script.startswith("#!"))
STUBS = {
    "srun": 'echo "$@" > srun.log\nwhile [ ! -e term ]; do sleep 0.02; done\nsleep 0.5\necho saved > saved\nexit 1',
    "scancel": 'echo "$@" > scancel.log\ntouch term',
    "scontrol": 'if [ "$1" = requeue ]; then cp saved requeued; fi\necho node1\necho node2',
}  # those of Slurm that the script calls


def documents() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    return list(yaml.safe_load_all(block))


def options(line: str) -> Any:
    """A line as torchrun's own parser reads it."""
    from torch.distributed.run import get_args_parser

    return get_args_parser().parse_args(shlex.split(line)[1:])


def seconds(text: str, name: str) -> int:
    return int(re.findall(rf"{name}(?:=|: )(\d+)", text)[0])


def test_there_is_something_to_check() -> None:
    assert len(TORCHRUN) == 6
    assert len(OURS) == 7
    assert len(BASH) == 3


@pytest.mark.parametrize("line", TORCHRUN)
def test_torchrun_has_every_option(line: str) -> None:
    read = options(line)
    assert read.module
    assert read.training_script in {"llamactl", "torchtitan.train"}
    several = not read.standalone
    assert several == (read.rdzv_backend == "c10d" and ":" in read.rdzv_endpoint)


@pytest.mark.parametrize("words", OURS)
def test_llamactl_has_every_option(words: str) -> None:
    command: Any = typer.main.get_command(app)
    command.commands["train"].make_context("train", shlex.split(words))


def test_every_option_in_the_text_is_one() -> None:
    from torch.distributed.run import get_args_parser

    train: Any = typer.main.get_command(app)
    ours = {option for name in ("train", "plan") for each in train.commands[name].params for option in each.opts}
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.S)
    named = {option for code in re.findall(r"`([^`]+)`", prose) for option in re.findall(r"--[a-z][a-z-]+", code)}
    slurm = {"--signal", "--kill-on-bad-exit", "--requeue"}
    assert named - slurm <= ours | set(get_args_parser()._option_string_actions)


@pytest.mark.parametrize("script", BASH)
def test_scripts_are_sound(script: str, tmp_path: Path) -> None:
    file = tmp_path / "script.sh"
    file.write_text(script)
    subprocess.run(["bash", "-n", file], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--shell=bash", "--exclude=SC1091", file], check=True)


def test_the_slurm_script_stops_the_run_before_its_time_and_comes_back(tmp_path: Path) -> None:
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    activate = tmp_path / "venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    script = SLURM.replace("/shared/llama", str(tmp_path))
    told = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "8"}
    surroundings = {**os.environ, **told, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    timely = 'while [ ! -s srun.log ]; do sleep 0.02; done; kill -USR1 "$1"'  # as Slurm signals the script alone
    process = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=surroundings)
    subprocess.run(["bash", "-c", timely, "bash", str(process.pid)], cwd=tmp_path, check=True)
    assert process.wait(20) != 0
    assert (tmp_path / "scancel.log").read_text().split() == ["--signal=TERM", "7"]
    assert (tmp_path / "requeued").read_text() == "saved\n", "queued again after the run had ended, not before"
    started = (tmp_path / "srun.log").read_text()
    assert {"--nnodes=2", "--rdzv-endpoint=node1:29400", "--name", "big"} <= set(started.split())
    assert seconds(SLURM, "--shutdown-timeout") < int(re.findall(r"USR1@(\d+)", SLURM)[0])


def test_the_pods_find_one_another_and_have_time_to_save() -> None:
    service, job = documents()
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (script,) = container["args"]
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == seconds(script, "--nnodes")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == seconds(script, "--nproc-per-node")
    assert f"--rdzv-endpoint={name}-0.{service['metadata']['name']}:" in script
    assert seconds(script, "--shutdown-timeout") < pod["terminationGracePeriodSeconds"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_file_for_torchtitan_is_python_and_reads_what_we_write() -> None:
    from llamactl.checkpoint.hf_config import hf_config
    from llamactl.config.schema import build_config, preset_settings

    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    ast.parse(code)
    written = hf_config(build_config([preset_settings("1b")]).model)
    assert set(re.findall(r'shape\["(\w+)"\]', code)) <= set(written)
