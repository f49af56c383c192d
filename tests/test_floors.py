"""The floors of the package: who may import whom. A failure names the import that breaks a rule."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import salt_losses

PACKAGE = Path(salt_losses.__file__).parent
# What each floor may not know. Pure functions are the modules that stand in none of these rooms.
ROOMS = ("runtime", "terms", "trainers", "adapters", "integrations", "cli")
FORBIDDEN = {
    "pure": ROOMS,
    "runtime": ("terms", "trainers", "adapters", "integrations", "cli"),
    "terms": ("trainers", "adapters", "integrations", "cli"),
    "trainers": ("adapters", "integrations", "cli"),
    "adapters": ("integrations", "cli"),
    "integrations": ("adapters", "cli"),
    "cli": ("integrations",),
}


def room(module: str) -> str:
    """`salt_losses.runtime.health` -> `runtime`; `pure` for what stands in no room."""
    parts = [*module.split("."), ""]
    if parts[1] == "":  # the package itself, which shows the public names of all
        return "top"
    if module.endswith(".__main__"):  # a command
        return "cli"
    if parts[1] == "config":  # the settings are made of terms
        return "terms"
    return parts[1] if parts[1] in ROOMS else "pure"


def imports(module: str, is_package: bool, source: str) -> Iterator[str]:
    """Full names of what a module imports of the package: modules, and names in them."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "salt_losses")
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            origin = ".".join([*base, *filter(None, [node.module])]) if node.level else node.module
            if origin and origin.split(".")[0] == "salt_losses":
                yield from (f"{origin}.{a.name}" for a in node.names)


def objections(module: str, is_package: bool, source: str) -> list[str]:
    """The imports that a module may not make."""
    found = []
    for name in imports(module, is_package, source):
        if room(name) in FORBIDDEN.get(room(module), ()):
            found.append(f"{module} imports {name}: {room(module)} may not know {room(name)}")
        parts = name.split(".")
        for i, part in enumerate(parts):
            # What begins with an underscore is for those inside of what holds it.
            holder = ".".join(parts[:i])
            inside = module == holder or module.startswith(f"{holder}.")
            if part.startswith("_") and not part.startswith("__") and not inside:
                found.append(f"{module} imports {name}: {part} is private to {holder}")
    return found


def modules() -> Iterator[tuple[str, bool, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        # The command's entry point is a floor of its own.
        if parts[-1] != "__main__":
            yield ".".join(parts[:-1] if is_package else parts), is_package, path.read_text()


def test_every_floor_stands_on_those_below_it_alone() -> None:
    found = [line for module in modules() for line in objections(*module)]
    assert not found, "\n".join(found)


def test_the_integrations_are_imported_by_nothing_of_the_package() -> None:
    for module, is_package, source in modules():
        if room(module) != "integrations":
            known = [n for n in imports(module, is_package, source) if room(n) == "integrations"]
            assert not known, f"{module} imports {known[0]}"


@pytest.mark.parametrize(
    ("module", "source", "objection"),
    [
        ("salt_losses.dmd", "from .runtime import health", "pure may not know runtime"),
        ("salt_losses.ops.fast", "from ..cli import main", "pure may not know cli"),
        ("salt_losses.runtime.new", "from ..adapters import record", "may not know adapters"),
        ("salt_losses.integrations.new", "import salt_losses.adapters.family", "know adapters"),
        ("salt_losses.adapters.rollout.new", "from ...integrations import fastgen", "know integr"),
        ("salt_losses.cli.new", "from ..adapters._launch import launch", "_launch is private to"),
        ("salt_losses.runtime.new", "from ..alignment import _by_frame", "_by_frame is private"),
        ("salt_losses.runtime.new", "def f():\n    from ..adapters import record", "adapters"),
    ],
)
def test_an_import_that_breaks_a_floor_is_named(module: str, source: str, objection: str) -> None:
    (found,) = objections(module, False, source)
    assert objection in found


def test_what_a_module_may_import_is_left_alone() -> None:
    allowed = "from .._checks import describe\nfrom ..flow import euler_step\nimport torch\n"
    assert objections("salt_losses.runtime.new", False, allowed) == []
