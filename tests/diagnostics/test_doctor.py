"""What `llamactl doctor` finds on machines that lack something, and that nothing makes it hang or fall over."""

import errno
import json
import os
import platform
import sys
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from llamactl import install_command
from llamactl.config.presets import PRESETS
from llamactl.diagnostics import compute as diagnostics_compute
from llamactl.diagnostics import doctor
from llamactl.diagnostics import system as diagnostics_system
from llamactl.diagnostics.check import Check, CheckResult
from llamactl.distributed.context import World
from llamactl.errors import UsageError
from llamactl.hardware.device import Precision
from llamactl.storage import disk, locks
from llamactl.tokenizer import gpt2_download
from tests.cli.test_cli import run

CPU = World(torch.device("cpu"), Precision(torch.float32, "as asked"))


def test_a_check_that_hangs_or_breaks_is_a_finding() -> None:
    def hang() -> CheckResult:
        time.sleep(60)
        return CheckResult("x", "fine", "")

    def refused() -> CheckResult:
        raise OSError(errno.EIO, "Input/output error")

    def damaged() -> CheckResult:
        raise UsageError("This is damaged.", "By water.", "Dry it.")

    def broken() -> CheckResult:
        raise KeyError

    started = time.monotonic()
    assert Check("x", hang, 0.1, "note", "Wait.").carry_out() == CheckResult("x", "note", "no answer in 0.1 s", "Wait.")
    assert time.monotonic() - started < 5
    assert Check("x", refused, failing="note").carry_out() == CheckResult("x", "note", "[Errno 5] Input/output error")
    assert Check("x", damaged, failing="note", fix="?").carry_out() == CheckResult(
        "x", "wrong", "This is damaged. By water.", "Dry it."
    )
    assert Check("x", broken).carry_out() == CheckResult("x", "wrong", "KeyError")


def test_packages_are_held_against_what_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert diagnostics_system.check_packages().verdict == "fine"
    lines = ["torch>=99", "nosuchpackage>=1", "numpy>=2.0", "alsonot==1; extra == 'gguf'", "numpy>=2.0; extra == 'fast'"]
    monkeypatch.setattr(diagnostics_system, "requires", lambda name: lines)
    found = diagnostics_system.check_packages()
    assert found.verdict == "wrong"
    assert "is not >=99" in found.what
    assert "nosuchpackage is missing" in found.what
    assert "numpy" not in found.what
    assert found.fix == "pip install 'torch>=99' 'nosuchpackage>=1'"
    missing = diagnostics_system.check_extras()
    assert (missing.verdict, missing.fix) == ("note", f"Where you want them: {install_command('gguf')}")
    assert "alsonot are not" in missing.what


def test_another_package_of_this_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics_system, "version", lambda name: {"llamactl": "0.10.4"}[name])
    found = diagnostics_system.check_python()
    assert (found.verdict, "llamactl 0.10.4" in found.what) == ("note", True)
    assert "pip uninstall llamactl" in found.fix


def test_an_old_python_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert diagnostics_system.check_python().verdict == "fine"
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.1")
    assert diagnostics_system.check_python().verdict == "wrong"


def test_a_disk_is_written_to_and_left_as_it_was(home: Path) -> None:
    found = diagnostics_system.check_disk("runs", 1.0)
    assert found.verdict == "fine"
    assert str(home / "runs") in found.what
    assert list(home.iterdir()) == []
    assert diagnostics_system.check_disk("runs", 1e18).verdict == "note"


def test_a_disk_that_is_full_or_refuses_or_does_not_lock_is_wrong(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(disk, "free_bytes", lambda path: 5_000_000)
        assert diagnostics_system.check_disk("runs", 1e9).verdict == "wrong"
    with monkeypatch.context() as patched:
        patched.setattr(locks, "is_locked", lambda path: False)
        found = diagnostics_system.check_disk("data", 1.0)
        assert (found.verdict, "locking" in found.what) == ("wrong", True)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    check = next(check for check in doctor.list_checks("cpu", offline=True) if check.name == "data")
    found = check.carry_out()
    assert found.verdict == "wrong"
    assert "Read-only file system" in found.what
    assert "LLAMACTL_HOME" in found.fix
    assert list(home.iterdir()) == []


def test_gpt2s_vocabulary_is_looked_for_and_not_downloaded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = home / "vocab.bpe"
    monkeypatch.setattr(gpt2_download, "_places", lambda: iter([place]))
    assert diagnostics_system.check_vocabulary(offline=True).verdict == "note"
    asked: list[str] = []
    monkeypatch.setattr(diagnostics_system, "_answer", asked.append)
    assert "0.5 MB" in diagnostics_system.check_vocabulary(offline=False).what
    assert asked == [gpt2_download.URL]
    place.write_text("damaged")
    check = next(check for check in doctor.list_checks("cpu", offline=True) if check.name == "tokenizer")
    assert check.carry_out().verdict == "wrong"
    assert check.carry_out().fix == f"Remove it: rm {place}"


class Answers(BaseHTTPRequestHandler):
    """A hub that says one thing."""

    code = 200

    def do_HEAD(self) -> None:
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(("code", "verdict"), [(200, "fine"), (404, "fine"), (403, "note"), (503, "note"), (None, "note")])
def test_the_hub_answers_or_is_a_note(code: int | None, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(urllib.request, "_opener", urllib.request.build_opener(urllib.request.ProxyHandler({})))
    monkeypatch.setattr(Answers, "code", code)
    server = HTTPServer(("127.0.0.1", 0), Answers)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if code is None:
        server.server_close()
    else:
        Thread(target=server.handle_request, daemon=True).start()
    found = doctor.list_checks("cpu", offline=False)[-1].carry_out()
    server.server_close()
    assert (found.name, found.verdict) == ("hub", verdict)
    assert ("prepare sample" in found.fix) == (verdict == "note")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in diagnostics_system.check_hub().what


def test_threads_are_held_against_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "crowding_threads", lambda: 0)
    monkeypatch.setattr(doctor, "usable_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for threads, said, fix in ((4, "fine", ""), (2, "fine", ""), (8, "note", "export OMP_NUM_THREADS=4")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert (doctor.check_threads().verdict, doctor.check_threads().fix) == (said, fix)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert doctor.check_threads().fix == "unset OMP_NUM_THREADS"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(doctor, "crowding_threads", lambda: 3)
    assert "This machine is busy (3 other threads on" in doctor.check_threads().what


def test_memory_names_the_largest_preset_that_fits() -> None:
    def roomy(room: float) -> CheckResult:
        return doctor.check_free_memory(World(CPU.device, CPU.precision, memory_override=int(room)))

    assert roomy(1e6).verdict == "wrong"
    assert "preset 7b " in roomy(1e12).what
    needs = {name: doctor._needed(diagnostics_compute.reference_model(name), CPU) for name in PRESETS}
    assert "preset 50m " in roomy((needs["50m"] + min(needs["150m"], needs["notebook"])) / 2).what


def test_a_gpu_that_pytorch_can_not_use_is_wrong_unless_the_cpu_was_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = home / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 550.54\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    found = doctor.check_cpu(CPU.device, "auto")
    assert (found.verdict, "550.54" in found.what) == ("wrong", True)
    assert doctor.check_cpu(CPU.device, "cpu").verdict == "fine"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert doctor.check_cpu(CPU.device, "auto").verdict == "fine"


@pytest.mark.slow
def test_the_kernel_of_attention_is_named() -> None:
    found = diagnostics_compute.check_attention(CPU)
    assert found.verdict == "fine"
    assert "_scaled_dot_product" in found.what
    assert "blockwise" in found.what


@pytest.mark.parametrize(
    ("answer", "verdict", "says"),
    [
        ("echo '{\"seconds\": 1.5}'", "fine", "1.5 s"),
        ('echo \'{"error": "InvalidCxxCompiler", "whole": "InvalidCxxCompiler"}\'', "wrong", "g++"),
        ('echo \'{"error": "CppCompileError", "whole": "fatal error: Python.h: No such file"}\'', "wrong", "python3-dev"),
        ('echo \'{"error": "Odd", "whole": "Odd"}\'', "wrong", "compile=off"),
        ("exit 139", "wrong", "139"),
        ("exec sleep 60", "wrong", "no answer in 0.5 s"),
    ],
)
def test_whatever_becomes_of_compiling_is_said(
    answer: str, verdict: str, says: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = home / "python"
    python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setitem(diagnostics_compute.PATIENCE, "compile", 0.5 if "sleep" in answer else 60.0)
    found = Check(
        "compile", lambda: diagnostics_compute.check_compile(CPU), fix=diagnostics_compute.WITHOUT_COMPILING
    ).carry_out()
    assert found.verdict == verdict
    assert says in f"{found.what} {found.fix}"
    assert ("compile=off" in found.fix) == (verdict == "wrong")


def test_compiled_code_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    wrongly: Callable[..., object] = lambda function, dynamic: lambda x: function(x) + 1  # noqa: E731
    monkeypatch.setattr(torch, "compile", wrongly)
    assert "other numbers" in json.loads(diagnostics_compute.run_check("compile", "cpu"))["error"]


@pytest.mark.slow
def test_the_command_says_it_in_lines_or_json(home: Path) -> None:
    done = run("doctor --offline --device cpu", PATH=os.environ["PATH"])
    names = [line.split()[1] for line in done.stdout.splitlines() if line[0] in "✓!✗"]
    assert names[0] == "python"
    assert {"packages", "extras", "device", "memory", "threads", "precision", "attention", "compile", "data", "runs"} < {*names}
    assert "hub" not in names
    assert "\x1b" not in done.stdout + done.stderr
    done = run("doctor --offline --device cpu --json", code=4, LLAMACTL_HOME="/proc/nosuch", CXX="/nosuch/g++")
    found = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert found["data"]["verdict"] == found["runs"]["verdict"] == found["compile"]["verdict"] == "wrong"
    assert "g++" in found["compile"]["fix"]
    assert "3 wrong" in done.stderr
    assert "no device" in run("doctor --device tpu", code=2).stderr
