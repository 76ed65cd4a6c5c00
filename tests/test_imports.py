"""Who may import whom, and what importing a module may load.

A module that takes what it needs as an argument can be tested alone; one that reaches back cannot.
"""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("app", "engine", "heads", "rag", "training", "tests")
TRAINING_MAY_USE = {
    "engine.prompt",
    "engine.schema",
    "engine.npc",
    "engine.weights",
    "engine.model",
    "engine.gate",
    "engine.evidence",
    "engine.naming",
    "engine.text",
    "engine.embed",
    "engine.listen",
    "engine.errors",
    "engine.decision",
    "engine.decode",
    "engine.settings",
    "engine.state",
}
LIGHT = ("engine.errors", "engine.text", "engine.schema", "engine.npc", "engine.npc_import")
HEAVY = ("torch", "transformers", "chromadb", "gradio")


@functools.cache
def modules() -> dict[str, Path]:
    """Return every module of the project but the tests, by dotted name."""
    files = [ROOT / "app.py"]
    for package in ("engine", "heads", "rag", "training"):
        files += sorted((ROOT / package).rglob("*.py"))
    names = {}
    for path in files:
        if path.is_file():
            parts = path.relative_to(ROOT).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(name: str, path: Path) -> set[str]:
    """Return which of our modules a file imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = origin(node, name, is_package=path.name == "__init__.py")
            found.update(resolved(base, (alias.name for alias in node.names)))
    return {one for one in found if one.split(".")[0] in OURS}


def origin(node: ast.ImportFrom, name: str, *, is_package: bool) -> str:
    """Return the dotted module that a `from … import` names, relative or not."""
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def resolved(base: str, names: Iterable[str]) -> set[str]:
    """`from engine import npc` imports engine.npc; `from engine.npc import NPC` engine.npc."""
    known = modules()
    return {f"{base}.{name}" if f"{base}.{name}" in known else base for name in names}


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def allowed(importer: str, imported: str) -> bool:
    """Tell whether the table of folders lets `importer` import `imported`."""
    target = imported.split(".")[0]
    if inside(imported, "engine.ui") and not (importer == "app" or inside(importer, "engine.ui")):
        return False
    if inside(importer, "app"):
        return target == "engine"
    if inside(importer, "engine"):
        return target in ("engine", "heads", "rag")
    if inside(importer, "heads") or inside(importer, "rag"):
        return inside(imported, importer.split(".")[0])
    if inside(importer, "training"):
        return target in ("training", "heads") or imported in TRAINING_MAY_USE
    return False


def test_every_module_imports_only_what_its_folder_may():
    astray = [
        f"{name} imports {imported}"
        for name, path in modules().items()
        for imported in sorted(imports_of(name, path))
        if not allowed(name, imported)
    ]
    assert astray == []


def test_the_walk_sees_the_project():
    found = modules()
    assert {"app", "engine", "engine.npc", "engine.pipeline", "training.rows"} <= set(found)
    assert {"engine.errors", "engine.schema"} <= imports_of("engine.npc", found["engine.npc"])
    for package in ("heads", "rag", "engine.ui"):
        assert any(inside(name, package) for name in found), package


@pytest.mark.parametrize(
    ("importer", "imported", "may"),
    [
        ("app", "engine.ui.chat", True),
        ("app", "heads", False),
        ("engine.ui.chat", "engine.ui.theme", True),
        ("engine.pipeline", "engine.ui.chat", False),
        ("engine.pipeline", "rag.store", True),
        ("engine.pipeline", "training.rows", False),
        ("engine.pipeline", "app", False),
        ("heads.spec", "heads.pooling", True),
        ("heads.spec", "engine.errors", False),
        ("rag.store", "heads", False),
        ("training.fit", "engine.gate", True),
        ("training.fit", "training.rows", True),
        ("training.fit", "engine.sessions", False),
        ("training.fit", "engine", False),
        ("training.fit", "rag.store", False),
        ("training.fit", "tests.helpers", False),
    ],
)
def test_the_table_itself(importer, imported, may):
    assert allowed(importer, imported) is may


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import engine.npc", {"engine.npc"}),
        ("from engine import npc", {"engine.npc"}),
        ("from engine.npc import NPC", {"engine.npc"}),
        ("from . import npc", {"engine.npc"}),
        ("from .npc import NPC", {"engine.npc"}),
        ("def f():\n    import training.rows", {"training.rows"}),
        ("import json, torch", set()),
    ],
)
def test_every_form_of_import_is_seen(tmp_path, source, expected):
    path = tmp_path / "made.py"
    path.write_text(source, encoding="utf-8")
    assert imports_of("engine.made", path) == expected


def test_light_modules_load_nothing_heavy():
    code = (
        "import importlib, json, sys\n"
        f"for name in {LIGHT!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
