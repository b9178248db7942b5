"""Imports go down: a folder uses those below it, and none above or beside it."""

import ast
from pathlib import Path

from tests.commands import ROOT

LEVELS = {"run": 5, "test": 5, "analysis": 4, "trainers": 3, "models": 2, "dataset": 2, "config": 1, "utils": 0}
EXCEPTIONS = {("dataset", "models.text_encoder")}  # texts become the tokens or features of the model's own encoder


def imported_modules(path: Path) -> set[str]:
    """The modules that a file imports, also within functions and by `from package import module`."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            modules.add(node.module)
    return modules


def upward_imports(root: Path) -> list[str]:
    """'<file> imports <module>' for each import of a project's folder by one that is not above it."""
    found = []
    for path in sorted(root.rglob("*.py")):
        folder = path.relative_to(root).parts[0].removesuffix(".py")
        for module in sorted(imported_modules(path)) if folder in LEVELS else ():
            other = module.partition(".")[0]
            upward = other in LEVELS and other != folder and LEVELS[other] >= LEVELS[folder]
            if upward and (folder, module) not in EXCEPTIONS:
                found.append(f"{path.relative_to(root)} imports {module}")
    return found


def test_imports_go_down():
    assert upward_imports(ROOT) == []


def test_an_import_that_goes_up_or_aside_is_found(tmp_path):
    for file, line in {
        "utils/log.py": "def f():\n    from trainers.runs import RunFolder",
        "models/dmd.py": "import dataset.features as features",
        "dataset/build.py": "from models.text_encoder import load",
        "trainers/heads.py": "import torch\nfrom models.dmd import DMD",
    }.items():
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(line)
    assert upward_imports(tmp_path) == ["models/dmd.py imports dataset.features", "utils/log.py imports trainers.runs"]
