"""What SECURITY.md says of files that are loaded, read off the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SAFE_YAML = {"safe_load", "safe_dump", "dump", "YAMLError", "SafeLoader", "constructor"}


def objections(source: str) -> list[str]:
    """Loads that could run what a file says, each with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                if "weights_only=True" not in {ast.unparse(word) for word in node.keywords}:
                    found.append(f"line {node.lineno}: torch.load without weights_only=True")
            case ast.Attribute(value=ast.Name(id="yaml"), attr="load"):
                # A loader of its own must be a subclass of the safe one.
                if "yaml.SafeLoader" not in source:
                    found.append(f"line {node.lineno}: yaml.load without a safe loader")
            case ast.Attribute(value=ast.Name(id="yaml"), attr=name) if name not in SAFE_YAML:
                found.append(f"line {node.lineno}: yaml.{name}")
            case ast.Import(names=names) if UNSAFE & {alias.name for alias in names}:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
            case ast.ImportFrom(module=module) if module in UNSAFE:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
            case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                found.append(f"line {node.lineno}: {name}")
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                found.append(f"line {node.value.lineno}: allow_pickle=True")
    return found


def test_no_file_that_is_loaded_can_run_code() -> None:
    modules = [
        path for top in ("src", "examples", "benchmarks") for path in (ROOT / top).rglob("*.py")
    ]
    found = {str(path.relative_to(ROOT)): objections(path.read_text()) for path in modules}
    assert len(found) > 50
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, map_location='cpu', weights_only=flag)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "yaml.full_load(text)",
        "import pickle",
        "from pickle import loads",
        "eval(text)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_an_unsafe_load_is_found(source: str) -> None:
    assert objections(source) != []
