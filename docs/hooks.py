"""MkDocs hooks: the reference of commands and recipes, made from the code, and links that leave the site.

Try: make docs
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from lepta.cli import app
from lepta.cli.recipes import all_sections
from lepta.core.fields import FieldText, field_texts

WIDTH = 80
SHIM = re.compile(r'<script src="https://unpkg.com/iframe-worker/shim"></script>')
OUTSIDE = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+(?:recipes|src|benchmarks|tests|README|CONTRIBUTING|CHANGELOG)[^)]*)\)")


def on_config(config: Any) -> Any:
    """Leave out of the navigation what is not written."""
    pages = Path(config.docs_dir)
    generated = {"reference/cli.md", "reference/recipe.md"}
    config.nav = _there(config.nav, lambda page: page in generated or (pages / page).is_file())
    return config


def _there(entries: list[Any], exists: Any) -> list[Any]:
    """The entries of a navigation whose page exists."""
    kept = []
    for entry in entries:
        ((title, below),) = entry.items()
        if isinstance(below, list):
            kept.append({title: _there(below, exists)})
        elif exists(below):
            kept.append({title: below})
    return kept


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/cli.md", content=commands_page()))
    files.append(File.generated(config, "reference/recipe.md", content=recipe_page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name files of the repository that the site does not hold, instead of linking to them."""
    return OUTSIDE.sub(lambda link: f"`{link[2].lstrip('./')}`" if link[1].startswith("`") else f"{link[1]}", markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Fetch nothing: the theme's helper for searching a site on disk would come from a server."""
    return SHIM.sub("", output)


on_post_template = on_post_page  # of the page for addresses that are none


def commands_page() -> str:
    """The help of all commands."""
    lines = ["# Command line", "", "What `lepta COMMAND --help` prints, of all commands.", ""]
    for name, command in commands(typer.main.get_command(app), "lepta"):
        context = command.make_context(name, [], resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH)
        lines += [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines)


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All commands that do something, with the words that call them."""
    inner = command.list_commands(None) if hasattr(command, "list_commands") else []
    if not inner:
        yield name, command
    for word in inner:
        yield from commands(command.get_command(None, word), f"{name} {word}")


def recipe_page() -> str:
    """All fields of a recipe and of a corpus file, section by section, from the settings models."""
    lines = [
        "# Recipe",
        "",
        "Every field of a recipe, from the models that check it; last, those of a corpus file.",
        "",
    ]
    for path, model in all_sections():
        lines += [f"## {path or 'The whole'}", "", (model.__doc__ or "").strip(), ""]
        lines += ["| field | takes | default | meaning |", "|---|---|---|---|"]
        lines += map(row, field_texts(model))
        lines.append("")
    return "\n".join(lines)


def row(field: FieldText) -> str:
    """A row of the table of a section."""
    default = "required" if field.required else f"`{field.default}`" if field.default else ""
    cells = (f"`{field.name}`", f"`{field.takes}`", default, field.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
