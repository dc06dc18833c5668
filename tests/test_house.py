"""The shape of the house: who may import whom, what an import costs, and that the README's tree is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "plugin", "training")


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """The first names of the modules that a source file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield path.relative_to(ROOT).parts[0] if node.level else (node.module or "").partition(".")[0]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("engine", {"plugin", "training", "torch", "torchvision", "tests"}),
        ("training", {"plugin", "tests"}),
        ("plugin", {"torch", "torchvision", "tests"}),
    ],
)
def test_import_directions(package: str, forbidden: set[str]) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imports(path)
        if name in forbidden
    ]
    assert not wrong


def test_plugin_reaches_training_only_inside_a_command() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "plugin").rglob("*.py"))
        if "training" in imports(path, top_level_only=True)
    ]
    assert not wrong


def module_names(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    dotted = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    return [".".join(parts).removesuffix(".__init__") for parts in dotted]


def test_starting_loads_no_torch() -> None:
    wanted = module_names("engine") + [name for name in module_names("plugin") if name == "plugin.cli"]
    source = (
        f"import importlib, sys\nfor name in {wanted!r}: importlib.import_module(name)\n"
        "print(*{'torch', 'training', 'mediapipe', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def tree_in(readme: str) -> set[str]:
    """Paths listed in the README's fenced tree: `folder/` at the margin, its files indented below it."""
    for block in readme.split("```")[1::2]:
        if "\nengine/" not in block:
            continue
        listed, folder = set(), ""
        for line in block.splitlines()[1:]:
            if not re.match(r" {0,4}[\w.]+/?(\s|,|$)", line):
                continue
            name, indent = line.split()[0].rstrip(","), len(line) - len(line.lstrip())
            if indent == 0:
                folder = name if name.endswith("/") else ""
                listed.add(name)
            elif indent <= 4:
                listed.add(folder + name)
        return listed
    return set()


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="there is no README.md yet")
def test_readme_tree_is_true() -> None:
    listed = tree_in((ROOT / "README.md").read_text(encoding="utf-8"))
    assert listed, "README.md shows no tree"
    missing = [path for path in sorted(listed) if not (ROOT / path).exists()]
    assert not missing, "the README lists what does not exist"
    modules = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).glob("*.py")
        if path.name != "__init__.py"
    }
    assert not modules - listed, "the README leaves out modules"


def test_tree_reader_sees_files_and_folders() -> None:
    readme = "text\n```\nMakefile   make\nengine/     faces\n  codec.py   bytes\n  backends/  one each\n```\n"
    assert tree_in(readme) == {"Makefile", "engine/", "engine/codec.py", "engine/backends/"}
