"""benchmarks/ablations.py: each change that llamactl does not offer can still be patched in, and changes the loss."""

import argparse
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import make_dataset
from tests.scripts import load_benchmark

TOKENS = 4_096
pytestmark = pytest.mark.slow


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_benchmark("ablations", monkeypatch)


def test_each_patch_still_changes_the_loss(
    script: ModuleType, home: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(home / "data" / "addresses", corpus)
    monkeypatch.chdir(tmp_path)
    losses = {}
    for name in ("the defaults", *script.PATCHES):
        out = tmp_path / f"{name.replace(' ', '-')}.json"
        script.make(name, 0, argparse.Namespace(data="addresses", tokens=TOKENS, model={}, out=out))
        losses[name] = json.loads(out.read_text())["loss"]
    usual = losses.pop("the defaults")
    assert [name for name, loss in losses.items() if loss == usual] == []
