"""The architecture, held against the code: who imports whom, what `--help` costs, what is documented."""

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llamactl"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each part may import of llamactl itself. Lower parts know nothing of higher ones.
LOWEST = {"llamactl", "errors", "quantities", "spelling", "durable"}
FOUNDATION = LOWEST | {"presets", "config", "knobs", "gpt2_vocabulary", "tokenizer", "encoders", "mapping", "artifacts"}
MAY_IMPORT = {
    "llamactl": set[str](),
    "errors": set[str](),
    "quantities": {"errors"},
    "spelling": set[str](),
    "durable": {"errors"},
    "presets": set[str](),
    "config": {"errors", "presets"},
    "knobs": {"config", "presets"},
    "gpt2_vocabulary": {"errors", "durable"},
    "tokenizer": {"errors", "gpt2_vocabulary"},
    "encoders": {"errors", "tokenizer"},
    "mapping": {"errors"},
    "artifacts": {"errors", "durable", "config", "tokenizer", "mapping"},
    "hugging_face": {"errors", "config", "tokenizer"},
    "tensors": {"errors"},
    "model": FOUNDATION - {"artifacts", "durable"},
    "corpus": FOUNDATION,
    "references": FOUNDATION,
    "axes": LOWEST,
    "plots": FOUNDATION | {"axes", "references"},
    "runs": FOUNDATION,
    "follow": FOUNDATION,
    "report": FOUNDATION | {"plots", "runs"},
    "checkpoint": FOUNDATION | {"hugging_face", "tensors", "model"},
    "training": FOUNDATION | {"hugging_face", "tensors", "model", "checkpoint", "corpus.batches"},
    "inference": FOUNDATION | {"hugging_face", "tensors", "model", "checkpoint", "corpus.batches"},
    "cli": FOUNDATION
    | {"follow", "model", "checkpoint", "corpus", "references", "plots", "runs", "report", "training", "inference"},
    "__main__": {"cli"},
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """The modules that a file imports, also inside functions and under TYPE_CHECKING."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_part_has_a_place() -> None:
    assert {part_of(name_of(path)) for path in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_layers(path: Path) -> None:
    part = part_of(name_of(path))
    known = {name_of(module) for module in MODULES}
    for imported in imports(path):
        if imported not in known or imported == "llamactl":
            continue
        other = imported.removeprefix("llamactl.")
        allowed = MAY_IMPORT[part] | {part}
        assert other.split(".")[0] in allowed or other in allowed or other in {"corpus"} & {a.split(".")[0] for a in allowed}, (
            imported
        )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rich_and_typer_live_in_the_cli(path: Path) -> None:
    if part_of(name_of(path)) != "cli":
        assert not {imported.split(".")[0] for imported in imports(path)} & {"rich", "typer"}
        assert "print(" not in path.read_text("utf-8").replace("footprint(", "")


TORCH_PARTS = {"model", "training", "inference", "checkpoint", "tensors"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_is_imported_only_where_it_computes(path: Path) -> None:
    if part_of(name_of(path)) not in TORCH_PARTS and path.name != "batches.py":
        heavy = {"torch", "datasets", "tiktoken", "tokenizers", "matplotlib", "pyarrow", "transformers"}
        assert not {imported.split(".")[0] for imported in imports(path, top_level_only=True)} & heavy


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
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "llamactl", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 0.3


def public(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Public functions, classes and methods of a file, with the names of their surroundings."""

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
                yield f"{prefix}.{child.name}", child
                if isinstance(child, ast.ClassDef):
                    yield from inside(child, f"{prefix}.{child.name}")

    return inside(ast.parse(path.read_text("utf-8")), name_of(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_names_are_documented_and_typed(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), "the module"
    for name, node in public(path):
        assert ast.get_docstring(node), name
        if isinstance(node, ast.FunctionDef):
            arguments = [
                a for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs] if a.arg not in ("self", "cls")
            ]
            assert node.returns is not None, name
            assert all(argument.annotation for argument in arguments), name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_stay_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.body[0].lineno < 40, f"{name_of(path)}.{node.name}"
