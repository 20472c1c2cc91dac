"""python docs.py: the site in build/site, of the Markdown beside the packages and of their docstrings.

A page keeps the place of its file, so that links between files are links between pages; README.md is the first page.
Every public module has a page below api/, its docstrings as they are written: what they align stays aligned, and a
shape in brackets is no link. Links to files that are no page lead nowhere in the site, and are left out.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent
PAGES = ROOT / "build" / "docs"
_Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def markdown() -> list[Path]:
    """The Markdown of the checkout, relative to it."""
    told = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in told.splitlines()]


def modules() -> dict[str, ast.Module]:
    """The public modules of the packages that have a docstring, by name."""
    found = {}
    for package in ("cora_kernels", "cora"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            tree = ast.parse(path.read_text("utf-8"))
            if not any(part.startswith("_") for part in parts) and ast.get_docstring(tree):
                found[".".join(parts)] = tree
    return found


def reference(name: str, module: ast.Module) -> str:
    """The page of a module: its docstring, and each public class, method and function with a docstring."""
    parts = [f"# {name}", _text(module)]
    for node in module.body:
        parts += _described(node, "##")
        if isinstance(node, ast.ClassDef) and _is_public(node):
            for method in node.body:
                parts += _described(method, "###")
    return "\n\n".join(parts) + "\n"


def _described(node: ast.stmt, heading: str) -> list[str]:
    if not isinstance(node, _Documented) or not _is_public(node):
        return []
    bare = ast.parse(ast.unparse(node)).body[0]
    assert isinstance(bare, _Documented)
    bare.body = [ast.Expr(ast.Constant(...))]
    signature = ast.unparse(bare).removesuffix("...").rstrip().removesuffix(":")
    return [f"{heading} {node.name}", f"```python\n{signature}\n```", _text(node)]


def _is_public(node: ast.stmt) -> bool:
    return isinstance(node, _Documented) and not node.name.startswith("_") and bool(ast.get_docstring(node))


def _text(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return f"````text\n{ast.get_docstring(node)}\n````"


def gather(pages: Path) -> None:
    """Writes every page, and what the pages show, into an empty folder."""
    shutil.rmtree(pages, ignore_errors=True)
    sources = markdown()
    for source in sources:
        target = pages / _page(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_linked(source, sources, pages), "utf-8")
    (pages / "api").mkdir()
    for name, module in modules().items():
        (pages / "api" / f"{name}.md").write_text(reference(name, module), "utf-8")


def _page(source: Path) -> Path:
    return Path("index.md") if source == Path("README.md") else source


def _linked(source: Path, sources: list[Path], pages: Path) -> str:
    """The text of a page. What it shows is copied beside it; a link to what is no page becomes its words."""

    def link(found: re.Match[str]) -> str:
        mark, words, target, anchor = found.groups()
        path = Path(*(source.parent / target).parts)
        if mark and (ROOT / path).is_file():
            (pages / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, pages / path)
            return found[0]
        if path in sources:
            up = "../" * len(source.parent.parts)
            return f"[{words}]({up}{_page(path).as_posix()}{anchor or ''})"
        return words

    return _LINK.sub(link, (ROOT / source).read_text("utf-8"))


if __name__ == "__main__":
    gather(PAGES)
    sys.exit(subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"], cwd=ROOT).returncode)
