"""What neither ruff nor import-linter (pyproject.toml) holds: what `--help` costs, and how long files and functions are."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "llamactl"
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    heavy = {"torch", "datasets", "tiktoken", "tokenizers", "matplotlib", "pyarrow", "numpy", "pydantic"}
    lines = [
        "import sys",
        "from llamactl.cli import main",
        "sys.argv[1:] = ['--help']",
        "try: main()",
        "except SystemExit: pass",
        f"assert not {heavy!r} & set(sys.modules)",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True)
    # Machines differ by more than a factor of two, so the yardstick is the help of a command line that does nothing.
    bare = "import typer; app = typer.Typer(rich_markup_mode='rich'); app.command()(lambda: None); app(['--help'])"
    ratios = [cpu_seconds(["-m", "llamactl", "--help"]) / cpu_seconds(["-c", bare]) for _ in range(5)]
    assert min(ratios) < 1.8, ratios


def cpu_seconds(arguments: list[str]) -> float:
    """Return what a run of Python takes of the processors."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_files_and_functions_stay_short() -> None:
    for path in MODULES:
        text = path.read_text("utf-8")
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.body[0].lineno < 40, f"{path}: {node.name}"
