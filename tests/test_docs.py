"""The site: every Markdown file and every public module is a page, and what pages lead to is there."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.modules import load_file

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    return load_file(ROOT / "docs.py", "docs")


@pytest.fixture(scope="module")
def pages(docs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("git tells which files are of the checkout")
    folder = tmp_path_factory.mktemp("site") / "docs"
    docs.gather(folder)
    return folder


def test_every_file_and_every_public_module_is_a_page(pages: Path) -> None:
    made = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    assert {"index.md", "CONTRIBUTING.md", "CHANGELOG.md", "cora/accuracy.md"} <= made
    for module in ("cora_kernels.functional", "cora.llm.patch", "cora", "cora.serving.app"):
        assert f"api/{module}.md" in made
    page = (pages / "api" / "cora_kernels.functional.md").read_text()
    assert "## lora_linear" in page and "def lora_linear(x: Tensor, weight: Tensor" in page
    assert "### set_deltas" in (pages / "api" / "cora.llm.patch.md").read_text()


def test_every_link_leads_somewhere(pages: Path) -> None:
    seen = 0
    for page in pages.rglob("*.md"):
        if page.parent.name == "api":
            continue
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            seen += 1
            assert (page.parent / target).is_file(), f"{page}: {target}"
    assert seen > 5


@pytest.mark.slow
def test_the_site_is_built_without_a_warning() -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    done = subprocess.run([sys.executable, "docs.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mermaid" in (ROOT / "build" / "site" / "index.html").read_text()
