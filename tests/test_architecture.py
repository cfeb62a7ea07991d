"""The house rules that a machine can check: which way imports go, sizes, documentation, sources."""

from __future__ import annotations

import ast
import inspect
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "onebasin"
FILES = sorted(PACKAGE.rglob("*.py"))

# Which units (modules or folders directly under onebasin) each unit may import; everything else is a wrong edge.
BASE = {"params", "errors", "progress"}
CORE = {*BASE, "layout", "spec", "permutation"}
WEIGHTS = {*CORE, "functional", "interpolate", "batchnorm", "moments", "layers"}
READING = {*WEIGHTS, "symmetry", "reading"}
MEASURING = {*READING, "activations", "layer_inputs", "pairs"}
MIDDLE = {*MEASURING, "synthetic", "matching", "best", "checkpoints", "merging"}
MAY_IMPORT: dict[str, set[str]] = {
    **{unit: BASE for unit in BASE},
    "functional": BASE,
    "layout": BASE,
    "spec": {*BASE, "layout"},
    "permutation": {*BASE, "layout", "spec"},
    **{unit: WEIGHTS for unit in ("interpolate", "batchnorm", "moments", "layers")},
    "symmetry": WEIGHTS,
    **{unit: READING for unit in ("reading", "activations", "layer_inputs")},
    "pairs": MEASURING,
    "best": {*MEASURING, "matching", "merging"},
    "synthetic": {*BASE, "functional"},
    "matching": WEIGHTS,
    "checkpoints": WEIGHTS,
    "merging": {*WEIGHTS, "matching"},
    "analysis": MIDDLE,
    "report": {*MIDDLE, "analysis"},
    "cli": {*MIDDLE, "analysis", "report", "demo", "onebasin"},
    "demo": {*MIDDLE, "analysis", "report", "onebasin"},
    "__main__": {"cli"},
    "__init__": {*MIDDLE, "analysis", "report"},
}
# Packages that only one unit may import, at any depth.
OWNED = {
    "matplotlib": {"report"},
    "plotly": {"report"},
    "safetensors": {"checkpoints"},
    "huggingface_hub": {"checkpoints"},
    "cyclopts": {"cli"},
    "sklearn": {"demo"},
    "numba": {"matching"},
}
NEVER = {"torchvision", "transformers", "timm"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the full dotted name of everything that `tree` imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit_imported(name: str) -> str | None:
    """Return the unit that an import of `name` reaches: `onebasin` for the flat API, None for other packages."""
    top, *rest = name.split(".")
    if top != "onebasin":
        return None
    inside = (bool(rest) and (PACKAGE / rest[0]).with_suffix(".py").exists()) or (PACKAGE / (rest or [""])[0]).is_dir()
    return rest[0] if rest and inside else "onebasin"


def wrong_edges(unit: str, tree: ast.AST) -> list[str]:
    reached = {name: unit_imported(name) for name in imported(tree)}
    allowed = MAY_IMPORT.get(unit, set()) | {unit, None}
    edges = [f"{unit} -> {to}" for to in reached.values() if to not in allowed]
    owned = [f"{unit} -> {name}" for name in reached if unit not in OWNED.get(name.split(".")[0], {unit})]
    return edges + owned + [f"{unit} -> {name}" for name in reached if name.split(".")[0] in NEVER]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    assert unit_of(path) in MAY_IMPORT, "a new unit: say in MAY_IMPORT what it may import"
    assert wrong_edges(unit_of(path), parse(path)) == []


@pytest.mark.parametrize(
    ("unit", "code"),
    [
        ("matching", "from onebasin.symmetry.discover import permutation_spec"),
        ("symmetry", "def f():\n    import onebasin.matching.weight"),
        ("spec", "from onebasin import permutation"),
        ("matching", "from onebasin import align"),
        ("analysis", "import onebasin"),
        ("report", "from onebasin.cli import main"),
        ("merging", "from onebasin.checkpoints import reading"),
        ("analysis", "def f():\n    from matplotlib import pyplot"),
        ("merging", "import safetensors.torch"),
        ("symmetry", "import torchvision"),
    ],
)
def test_a_wrong_edge_is_seen(unit: str, code: str) -> None:
    assert len(wrong_edges(unit, ast.parse(code))) == 1


def test_a_relative_import_is_seen() -> None:
    with pytest.raises(AssertionError, match="absolute"):
        wrong_edges("matching", ast.parse("from . import gains"))


OUTSIDE = sorted(path for folder in ("experiments", "benchmarks") for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_experiments_and_benchmarks_see_only_the_public_api(path: Path) -> None:
    inner = [name for name in imported(parse(path)) if unit_imported(name) not in (None, "onebasin")]
    assert inner == [], "import these from onebasin itself"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the length of `function` without decorators and docstring; inner functions count in it."""
    assert function.end_lineno is not None
    length = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        assert first.end_lineno is not None
        length -= first.end_lineno - first.lineno + 1
    return length


def outer_functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        else:
            yield from outer_functions(node)


def test_functions_are_short() -> None:
    lengths = {f"{path.name}:{f.name}": code_lines(f) for path in FILES for f in outer_functions(parse(path))}
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    ordered = sorted(lengths.values())
    assert statistics.median(ordered) <= 10
    assert ordered[int(0.9 * len(ordered))] <= 40


def test_code_lines_leave_out_the_docstring() -> None:
    source = 'def f(x):\n    """One.\n\n    Two.\n    """\n    def g():\n        return x\n    return g\n'
    (function,) = outer_functions(ast.parse(source))
    assert code_lines(function) == 4


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_library_prints_nothing(path: Path) -> None:
    calls = [node.func for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    printing = [f"line {call.lineno}" for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert printing == [] or unit_of(path) == "cli"


def public_names() -> list[str]:
    import onebasin

    return sorted(onebasin.__all__)


def test_the_flat_api_is_documented() -> None:
    import onebasin

    assert public_names(), "onebasin.__all__ is empty"
    objects = {name: getattr(onebasin, name) for name in public_names()}
    callables = {name: value for name, value in objects.items() if inspect.isclass(value) or inspect.isroutine(value)}
    undocumented = [name for name, value in callables.items() if not own_docstring(value)]
    for name, value in callables.items():
        members = vars(value).items() if inspect.isclass(value) else ()
        undocumented += [
            f"{name}.{member}"
            for member, function in members
            if not member.startswith("_") and is_method(function) and not own_docstring(function)
        ]
    assert undocumented == []


def own_docstring(value: object) -> str:
    """Return what is written at `value` itself: neither inherited nor made up by `dataclass`."""
    text = getattr(value, "__doc__", None) or ""
    return "" if inspect.isclass(value) and text.startswith(f"{value.__name__}(") else text


def is_method(value: object) -> bool:
    return inspect.isfunction(value) or isinstance(value, classmethod | staticmethod | property)


CITATION = re.compile(r"\b[a-z]+(?:19|20)\d\d[a-z]?\b")
KEYS = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "docs" / "references.bib").read_text(encoding="utf-8"), re.M))


def sources(text: str) -> list[str]:
    """Return the paragraphs of a docstring that begin with `Source:`."""
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*[A-Z]\w+:)", text)
    return [part.strip() for part in paragraphs if part.strip().startswith("Source")]


def unresolved(text: str, keys: set[str]) -> list[str]:
    """Return the sources of a docstring that cite nothing, and the keys they cite that are not among `keys`."""
    bare = [part for part in sources(text) if not CITATION.search(part)]
    return bare + [key for part in sources(text) for key in CITATION.findall(part) if key not in keys]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_source_is_in_the_bibliography(path: Path) -> None:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(parse(path)) if isinstance(node, kinds)]
    assert [problem for text in docstrings for problem in unresolved(text, KEYS)] == []


def test_an_unknown_source_is_seen() -> None:
    assert "ainsworth2023" in KEYS
    assert unresolved("One.\n\nSource: ainsworth2023, Alg. 1; nobody1999.\nDiffers: in all.", KEYS) == ["nobody1999"]
    assert unresolved("One.\n\nSource: folklore.", KEYS) == ["Source: folklore."]


def module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run on import: all but the bodies of functions."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.stmt):
            yield node
        waiting.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_tests_import_no_zoo_at_module_level(path: Path) -> None:
    tops = {name.split(".")[0] for statement in module_level(parse(path)) for name in imported_here(statement)}
    assert tops & NEVER == set()


def imported_here(statement: ast.stmt) -> list[str]:
    return list(imported(statement)) if isinstance(statement, ast.Import | ast.ImportFrom) else []


def test_a_zoo_import_is_seen_but_in_functions() -> None:
    code = "try:\n    import timm.models\nexcept ImportError:\n    pass\ndef f():\n    import torchvision\n"
    assert [name for s in module_level(ast.parse(code)) for name in imported_here(s)] == ["timm.models"]
