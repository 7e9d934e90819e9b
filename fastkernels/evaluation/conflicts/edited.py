"""A copy of a candidate's folder, and an edit of all that is in it which changes every text and no meaning."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

SOURCES = {".py", ".cu", ".cuh", ".cpp", ".cc", ".c", ".h", ".hpp", ".ptx", ".json", ".toml", ".yaml", ".txt"}
EDITED = SOURCES - {".json", ".toml", ".yaml", ".txt"}
LARGEST_BYTES = 1 << 20
MOST_FILES = 500
DEPTH = 3


def copy_sources(candidate: Path, target: Path) -> None:
    """Copies the candidate's file, and from its folder what is source code or settings; not what was built from it."""
    folder = candidate.parent
    files = [f for depth in range(DEPTH) for f in sorted(folder.glob("*/" * depth + "*")) if f.suffix in SOURCES]
    for file in (candidate, *files[:MOST_FILES]):
        if file.is_file() and file.stat().st_size <= LARGEST_BYTES:
            to = target / file.relative_to(folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)


def edit_sources(folder: Path) -> None:
    """A line more in every text of several lines and every function; an empty line at the end of other sources."""
    for file in folder.rglob("*"):
        if file.suffix == ".py":
            try:
                tree = ast.parse(file.read_text())
            except SyntaxError:
                continue
            file.write_text(ast.unparse(ast.fix_missing_locations(Longer().visit(tree))))
        elif file.suffix in EDITED:
            file.write_text(file.read_text(errors="surrogateescape") + "\n", errors="surrogateescape")


class Longer(ast.NodeTransformer):
    """Lengthens what a program may hash of itself."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str) and "\n" in node.value:
            return ast.Constant(value=node.value + "\n")
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.JoinedStr:
        if any(isinstance(v, ast.Constant) and "\n" in str(v.value) for v in node.values):
            node.values.append(ast.Constant(value="\n"))
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.body.append(ast.Pass())
        return node
