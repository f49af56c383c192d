"""A trainer's source, read as syntax trees: which classes there are, and what they have.

Nothing is imported. A name is followed through `from ... import`, packages' `__init__.py` among
them, as far as it stays in the checkout. An attribute of an object is what its class defines, or
what any of its methods (or of its bases') assigns to `self`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Class:
    """A class and the file that defines it."""

    node: ast.ClassDef
    path: Path

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def where(self) -> str:
        return f"{self.path}:{self.node.lineno}"


class Checkout:
    """The Python files below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.broken: list[str] = []
        self._trees: dict[Path, ast.Module | None] = {}

    def tree(self, path: Path) -> ast.Module | None:
        """Return a file's syntax tree; None if it is not there, or not Python."""
        if path not in self._trees:
            self._trees[path] = None
            if (self.root / path).is_file():
                try:
                    text = (self.root / path).read_bytes()
                    self._trees[path] = ast.parse(text)
                except (SyntaxError, ValueError, OSError) as error:
                    self.broken.append(f"{path}: {error}")
        return self._trees[path]

    def find(self, module: Path, name: str) -> Class | None:
        """Return the class that `name` means in a file."""
        return self._find(module, name, frozenset())

    def _find(self, path: Path, name: str, seen: frozenset[tuple[Path, str]]) -> Class | None:
        tree = self.tree(path)
        if tree is None or (path, name) in seen:
            return None
        seen = seen | {(path, name)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == name:
                return Class(node, path)
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    for target in self._modules(path, node):
                        found = self._find(target, alias.name, seen)
                        if found is not None:
                            return found
        return None

    def _modules(self, path: Path, node: ast.ImportFrom) -> Iterator[Path]:
        """Yield the files that `from ... import` may mean: from the package, or from the root."""
        base = Path(".")
        if node.level:
            base = path.parent
            for _ in range(node.level - 1):
                base = base.parent
        module = base.joinpath(*(node.module or "").split("."))
        for target in (module.with_suffix(".py") if node.module else None, module / "__init__.py"):
            if target is not None and (self.root / target).is_file():
                yield target
        if not node.module:  # from . import dmd
            yield from (base / f"{alias.name}.py" for alias in node.names)

    def mro(self, cls: Class) -> list[Class]:
        """Return the class and those of its bases that are in the checkout."""
        line, waiting = [], [cls]
        while waiting:
            cls = waiting.pop(0)
            if cls in line:
                continue
            line.append(cls)
            for base in cls.node.bases:
                name = _last_name(base)
                found = None if name is None else self.find(cls.path, name)
                waiting += [] if found is None else [found]
        return line

    def attribute(self, cls: Class, name: str) -> Attribute | None:
        """Return what an object of the class has under a name; None if nothing is seen of it."""
        found = None
        for owner in self.mro(cls):
            members = _members(owner)
            if name in members.functions:
                return Attribute(owner.path, members.functions[name])
            if name in members.assigned:
                values = tuple((owner.path, value) for value in members.assigned[name])
                found = Attribute(owner.path, None, (found.values if found else ()) + values)
        return found

    def classes_of(self, attribute: Attribute) -> list[Class]:
        """Return the classes whose constructors or class methods make an attribute's values."""
        classes = []
        for path, value in attribute.values:
            for call in ast.walk(value) if value is not None else ():
                if isinstance(call, ast.Call):
                    name = _constructor(call.func)
                    cls = None if name is None else self.find(path, name)
                    if cls is not None and cls not in classes:
                        classes.append(cls)
        return classes

    def functions(self, path: Path) -> set[str]:
        tree = self.tree(path)
        body = [] if tree is None else tree.body
        return {node.name for node in body if isinstance(node, Function)}

    @cached_property
    def commit(self) -> str | None:
        """The commit that is checked out, from git's own files; None outside a repository."""
        return _commit(self.root)


@dataclass(frozen=True)
class Attribute:
    """`function`: it is a method. Otherwise `values`: what is assigned, and in which file."""

    path: Path
    function: Function | None
    values: tuple[tuple[Path, ast.expr | None], ...] = ()

    def assigns(self, name: str) -> Attribute:
        """Yield what the function assigns to `self.<name>`."""
        found = [
            value
            for node in (ast.walk(self.function) if self.function is not None else ())
            for target, value in assignments(node)
            if isinstance(target, ast.Attribute) and target.attr == name and _is_self(target.value)
        ]
        return Attribute(self.path, None, tuple((self.path, value) for value in found))

    def lacks(self, keywords: tuple[str, ...]) -> list[str]:
        """Return the keywords that the function does not take."""
        if self.function is None or self.function.args.kwarg is not None:
            return []
        arguments = self.function.args
        known = {a.arg for a in (*arguments.args, *arguments.kwonlyargs)}
        return [name for name in keywords if name not in known]


@dataclass
class _Members:
    functions: dict[str, Function]
    assigned: dict[str, list[ast.expr | None]]


@cache
def _members(cls: Class) -> _Members:
    functions: dict[str, Function] = {}
    assigned: dict[str, list[ast.expr | None]] = {}
    for node in cls.node.body:
        if isinstance(node, Function):
            functions[node.name] = node
        for name, value in assignments(node):
            if isinstance(name, ast.Name):
                assigned.setdefault(name.id, []).append(value)
    for inner in ast.walk(cls.node):
        for target, value in assignments(inner):
            if isinstance(target, ast.Attribute) and _is_self(target.value):
                assigned.setdefault(target.attr, []).append(value)
    return _Members(functions, assigned)


def assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            several = isinstance(target, (ast.Tuple, ast.List))
            for part in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
                yield part, None if several else node.value
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
        yield node.target, node.value


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _constructor(function: ast.expr) -> str | None:
    """Return the class of `Class(...)` and of `Class.from_pretrained(...)`."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return function.value.id
    return function.id if isinstance(function, ast.Name) else None


def _commit(root: Path) -> str | None:
    for folder in (root.resolve(), *root.resolve().parents):
        git = folder / ".git"
        if git.is_file():  # a worktree or a submodule
            git = (folder / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = git / "HEAD"
        if not head.is_file():
            continue
        content = head.read_text().strip()
        if not content.startswith("ref:"):
            return content
        ref = content.removeprefix("ref:").strip()
        common = git / "commondir"
        places = [git, (git / common.read_text().strip()).resolve()] if common.is_file() else [git]
        for place in places:
            if (place / ref).is_file():
                return (place / ref).read_text().strip()
            packed = place / "packed-refs"
            for line in packed.read_text().splitlines() if packed.is_file() else ():
                if line.endswith(f" {ref}"):
                    return line.split()[0]
        return None
    return None
