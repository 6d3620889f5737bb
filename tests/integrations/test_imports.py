"""Which files import other libraries of models and kernels."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOMES = {
    "transformers": {"fastspeech/integrations/transformers.py"},
    "kernels": {"fastspeech/integrations/kernel_mapping.py"},
}
"""Of the package; bench/ measures against transformers, and tests hold it to that."""


@cache
def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("library", HOMES)
def test_only_their_integrations_import_them(library: str) -> None:
    files = [path for folder in ("fastspeech", "kernels") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert {str(path.relative_to(ROOT)) for path in files if library in imported(path)} == HOMES[library]
