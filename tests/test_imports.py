"""Layers of packages: each package imports only those below it."""

import ast
from pathlib import Path

from tests.commands import ROOT

LEVELS = {
    "run": 6,
    "test": 6,
    "analysis": 5,
    "experiments": 4,
    "trainers": 3,
    "models": 2,
    "dataset": 2,
    "config": 1,
    "utils": 0,
}
# texts become the tokens or features of the model's own encoder
EXCEPTIONS = {("dataset", "models.text_encoder")}


def imported_modules(path: Path) -> set[str]:
    """The modules that a file imports, also within functions and by `from … import …`."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            modules.add(node.module)
    return modules


def test_packages_import_only_lower_packages():
    for path in sorted(ROOT.rglob("*.py")):
        folder = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for module in imported_modules(path) if folder in LEVELS else ():
            other = module.partition(".")[0]
            below = other not in LEVELS or other == folder or LEVELS[other] < LEVELS[folder]
            assert below or (folder, module) in EXCEPTIONS, f"{path} imports {module}"
