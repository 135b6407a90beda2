"""The packages import one another in one direction, and load nothing heavy before it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ["sandbox", "verifiers", "rollout", "grpo"]  # each imports only what stands before it
HEAVY = ["torch", "vllm", "ray", "docker", "sympy", "transformers"]


class Import(NamedTuple):
    """One imported top-level package: where, and whether it happens as soon as the file is imported."""

    file: str  # relative to the root, such as grpo/cluster.py
    line: int
    package: str
    at_import: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.package}"


def imports_of(package: str) -> list[Import]:
    files = sorted((ROOT / package).rglob("*.py"))
    return [found for path in files for found in imports_in(path.read_text(), path.relative_to(ROOT).as_posix())]


def imports_in(source: str, file: str) -> list[Import]:
    return list(walk(ast.parse(source, file), file, at_import=True))


def walk(node: ast.AST, file: str, *, at_import: bool) -> Iterator[Import]:
    """The absolute imports below a node; relative ones stay inside their package."""
    if isinstance(node, ast.Import):
        yield from (Import(file, node.lineno, alias.name.partition(".")[0], at_import) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield Import(file, node.lineno, node.module.partition(".")[0], at_import)
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.body:
            yield from walk(child, file, at_import=False)
        for child in node.orelse:
            yield from walk(child, file, at_import=at_import)
    else:
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, file, at_import=at_import and not deferred)


def test_the_reader_of_imports_tells_now_from_later():
    source = """
import torch.nn
from . import learner
if TYPE_CHECKING:
    import vllm
class Worker:
    import ray
    def load(self):
        from docker.errors import NotFound
"""
    found = [(i.package, i.at_import) for i in imports_in(source, "example.py")]
    assert found == [("torch", True), ("vllm", False), ("ray", True), ("docker", False)]


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_those_before_it(package: str):
    later = ORDER[ORDER.index(package) + 1 :]
    wrong = [str(i) for i in imports_of(package) if i.package in later]
    assert not wrong, f"the order is {' -> '.join(ORDER)}: {wrong}"


def test_only_the_cluster_and_its_jobs_import_ray():
    allowed = ("grpo/cluster.py", "grpo/nodes.py", "grpo/jobs/server.py")
    wrong = [str(i) for package in ORDER for i in imports_of(package) if i.package == "ray" and i.file not in allowed]
    assert not wrong


def test_vllm_is_loaded_with_its_engine_alone():
    found = [i for package in ORDER for i in imports_of(package) if i.package == "vllm" and i.at_import]
    wrong = [str(i) for i in found if not i.file.startswith("rollout/vllm_")]
    assert not wrong, f"import it inside the function that needs it: {wrong}"


@pytest.mark.parametrize("package", ["sandbox", "verifiers", "rollout"])
def test_importing_a_package_loads_nothing_heavy(package: str):
    program = f"import sys, {package}; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("package", ORDER)
def test_the_packages_are_ours(package: str):
    """PyPI has another distribution that imports as verifiers."""
    program = f"import {package}; print({package}.__file__)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()) == ROOT / package / "__init__.py"


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their bare names: of two alike, the second is an error, and nothing runs."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
