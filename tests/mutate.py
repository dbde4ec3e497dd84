"""Take each sync, rename, hash check and lock out of the code in its turn, and see a test fail for it.

    python tests/mutate.py

Prints a line for each: what was taken out, and the test that noticed. One that nobody noticed is an error. The code in the
working tree is what is changed, and put back.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = (
    "llamactl/storage/atomic.py",
    "llamactl/storage/disk.py",
    "llamactl/storage/locks.py",
    "llamactl/checkpoint/format.py",
    "llamactl/checkpoint/io.py",
    "llamactl/checkpoint/select.py",
    "llamactl/training/async_checkpoint.py",
    "llamactl/metrics/jsonl.py",
)
TESTS = (
    "tests/storage/test_atomic.py",
    "tests/checkpoint/test_io.py",
    "tests/metrics/test_monitor.py",
    "tests/training/test_survival.py",
    "tests/training/test_nonfinite.py",
)
CALLS = {"fsync", "sync_path", "sync_logs", "_sync", "rename", "replace", "remove_folder", "prune"}
CHECKS = {"check_files", "find_newest", "try_lock"}  # in these functions each part of a condition is a check


def mutants(path: Path) -> Iterator[tuple[str, str]]:
    """What is taken out, and the file without it."""
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            for what, old, new in _without(node, function.name):
                yield f"{path.name}, {function.name}: {what}", _replaced(source, old, new)


def _without(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST, str]]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        if name in CALLS:
            yield ast.unparse(node), node, "pass"
    if isinstance(node, ast.BoolOp) and function in CHECKS:
        for part in node.values:
            neutral = "True" if isinstance(node.op, ast.And) else "False"
            yield f"{ast.unparse(part)} in a condition", part, neutral
    if isinstance(node, ast.While) and "try_lock" in ast.unparse(node.test):
        yield f"while {ast.unparse(node.test)}", node.test, "False"
    if isinstance(node, ast.With) and "hold_lock" in ast.unparse(node.items[0]):
        yield f"with {ast.unparse(node.items[0])}", node.items[0].context_expr, "nullcontext()"
    if isinstance(node, ast.Raise) and function in ("restore_checkpoint", "_put", "read_verified_state"):
        yield ast.unparse(node), node, "pass"


def _replaced(source: str, node: ast.AST, new: str) -> str:
    """The source with a node's text replaced, by bytes as `ast` counts."""
    place = ast.Constant(value=None)
    ast.copy_location(place, node)
    lines = source.encode().splitlines(keepends=True)
    assert place.end_lineno is not None
    assert place.end_col_offset is not None
    start = sum(map(len, lines[: place.lineno - 1])) + place.col_offset
    end = sum(map(len, lines[: place.end_lineno - 1])) + place.end_col_offset
    content = source.encode()
    return (content[:start] + new.encode() + content[end:]).decode()


def noticed() -> str:
    """The first test that fails, or nothing."""
    words = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else "" if done.returncode == 0 else "does not run"


def main() -> None:
    """Try them all."""
    missed = 0
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    for name in FILES:
        path = ROOT / name
        whole = path.read_text("utf-8")
        for what, mutant in list(mutants(path)):
            if only not in what:
                continue
            try:
                path.write_text(mutant, "utf-8")
                found = noticed()
            finally:
                path.write_text(whole, "utf-8")
            missed += not found
            print(f"{'noticed' if found else 'MISSED '}  {what}  {found}", flush=True)
    sys.exit(f"{missed} were not noticed." if missed else 0)


if __name__ == "__main__":
    main()
