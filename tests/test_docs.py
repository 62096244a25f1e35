"""The pages are true: links lead somewhere, commands parse, code compiles, both READMEs agree, the site builds."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import typer
import yaml
from markdown_it import MarkdownIt

from lepta.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "recipes" / "README.md"])
GENERATED = {"cli.md", "recipe.md"}  # by docs/hooks.py
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
# In a paragraph, what should begin a line of its own: an item of a list, a heading, a row of a table.
JOINED = re.compile(r"[.:;!?)] (?:-|\d+\.) (?=[*`A-ZА-Я])|\s#{1,6} [*`A-ZА-Я]|^\|", re.MULTILINE)
UNREAD = re.compile(r"<p>[^<]*\n(?:[-*] |\d+\. |\|)")  # a list or table that MkDocs took for text: no blank line before
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def ids(page):
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Ids of the headings of a page, as GitHub and MkDocs make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        plain = unicodedata.normalize("NFC", re.sub(r"[`*]", "", heading)).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        place, _, anchor = (link[0] or link[1]).partition("#")
        if place.startswith(("http://", "https://")):
            continue
        target = (page.parent / place).resolve() if place else page
        if target.name in GENERATED and not target.exists():
            continue
        assert target.exists(), f"{page.name}: {place}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {place}#{anchor}"


def code_lines(page: Path):
    """Lines of code of a page, indented or fenced, long ones joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = "".join(code for language, code in FENCED.findall(text) if language in ("", "sh", "bash", "console"))
    indented = "\n".join(line[4:] for line in FENCED.sub("", text).splitlines() if line.startswith("    "))
    return f"{fenced}\n{indented}".splitlines()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_lists_headings_and_tables_are_not_joined_to_the_text_before(page):
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type == "inline":
            joined = JOINED.search(token.content)
            assert not joined, f"{page.name}, line {token.map[0] + 1}: {token.content[: joined.end()][-80:]}"


def test_joined_lists_are_found():
    joined = ("in this\nstep. 4. **Head.** There", "three: - `a` is", "so. ## More", "so:\n| a | b |")
    assert all(map(JOINED.search, joined))
    assert not any(map(JOINED.search, ("in table 2. Then", "1 - 2: -1", "a [link](#b) # 2")))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_have_the_options_that_pages_name(page):
    for line in code_lines(page):
        called = line.strip().removeprefix("CUDA_VISIBLE_DEVICES=0 ").partition(" -m lepta ")
        words = ("lepta " + called[2] if called[1] else line.strip()).strip()
        if not words.startswith("lepta ") or re.search(r"[|\[]|\.\.\.", words):
            continue
        _, *given = shlex.split(words, comments=True)
        command = typer.main.get_command(app)
        while given and hasattr(command, "list_commands") and not given[0].startswith("-"):
            assert given[0] in command.list_commands(None), f"{page.name}: {words}"
            command = command.get_command(None, given.pop(0))
        if not hasattr(command, "list_commands"):
            command.make_context("lepta", given)  # raises for an unknown option or a missing one


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_compiles(page):
    for language, code in FENCED.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(code, page.name, "exec")


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs").rglob("*.ipynb")), ids=ids)
def test_notebooks_run_from_top_to_bottom(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name} {cell['id']}", "exec"), names)
    first, last = names["scores"]
    assert last.characters_per_token > 1.5 * first.characters_per_token and "bits per byte" in capsys.readouterr().out


def test_russian_readme_is_equal_to_the_english_one():
    english, russian = (ROOT / name for name in ("README.md", "README.ru.md"))

    def commands(page):
        return [line.partition("#")[0].strip() for line in code_lines(page)]

    def numbers(page):
        return sorted(re.findall(r"\d+[.,]\d+", FENCED.sub("", page.read_text(encoding="utf-8")).replace(",", ".")))

    assert commands(english) == commands(russian)
    assert numbers(english) == numbers(russian)
    texts = [page.read_text(encoding="utf-8") for page in (english, russian)]
    assert [text.count("\n## ") for text in texts] == [3, 3]
    assert max(len(text.splitlines()) for text in texts) <= 60, "README is one screen"


def test_russian_tutorials_have_the_commands_of_the_english_ones():
    for page in sorted((ROOT / "docs" / "tutorials").glob("*.md")):
        assert code_lines(page) == code_lines(ROOT / "docs" / "ru" / "tutorials" / page.name)


def test_every_page_is_in_the_navigation():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"[\w/-]+\.md", str(navigation))) == pages | {f"reference/{name}" for name in GENERATED}


def test_the_site_builds_strictly_with_the_reference_from_the_code(tmp_path):
    if not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("the site needs the extra `docs` (make docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert not done.returncode, done.stderr
    recipe = (tmp_path / "site/reference/recipe.html").read_text(encoding="utf-8")
    cli = (tmp_path / "site/reference/cli.html").read_text(encoding="utf-8")
    assert "hidden_rate" in recipe and "lepta darumeru compare" in cli
    assert "build_vocabulary" in (tmp_path / "site/reference/api.html").read_text(encoding="utf-8")
    elsewhere = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"')
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not elsewhere.search(text), f"{page.name} is to be read offline"
        assert not UNREAD.search(text), f"{page.name}: {UNREAD.search(text)[0]}"
