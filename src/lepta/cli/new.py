"""`lepta new`: a recipe to begin with."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field

from lepta.cli.common import MOST_GPUS, say
from lepta.cli.options import Flags, takes_settings
from lepta.core.errors import LeptaError
from lepta.core.output import write_new_file
from lepta.core.reading import is_there, parse_yaml
from lepta.core.settings import Section, is_name, validated
from lepta.recipe import Recipe

FEW = 100_000  # characters of text, below which rows learn little (docs/faq.md)


class Subject(Section):
    """Which model learns which language, and which it must not forget."""

    base: str = Field(default="", description="Foundation model: folder, GGUF file, package:NAME/FILE or hub id")
    language: str = Field(default="", description="The language to learn, for example kk")
    text: list[str] = Field(default_factory=list, description="Training text in it: file or folder")
    valid: list[str] = Field(
        default_factory=list, description="Held-out text in it (default: known for starter:LANGUAGE/train)"
    )
    source_language: str = Field(default="en", description="The language that the base knows best")
    source_text: list[str] = Field(
        default_factory=list,
        description="Training text in that one, so that it is not forgotten (default: starter:en/train for en)",
    )
    source_valid: list[str] = Field(
        default_factory=list, description="Held-out text in that one (default: starter:en/valid for starter:en/train)"
    )


@takes_settings
def new(
    recipe: Annotated[Path, typer.Argument(help="File to write; its name is the recipe's.")],
    subject: Annotated[Subject, Flags(headings={"": "Options"})],
    variant: Annotated[
        list[str] | None, typer.Option(help="Instruct variant of the base, MODEL or NAME=MODEL; repeat for several.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="GPU that it will run on, as lepta plan lists them (default: none).")] = "",
    gpus: Annotated[int, typer.Option(min=1, max=MOST_GPUS, help="How many of them.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a recipe to begin with, from a model, a language and text; ask for what is not given.

    Numbers follow from the size of the model, the amount of text and the device; comments say why.

    Try: lepta new my.yaml --base Qwen/Qwen3-0.6B-Base --language kk --text kk/train --valid kk/valid
    """
    if not is_name(recipe.stem):
        raise LeptaError(f"{recipe}: its name is the recipe's; expected a file name of letters, digits, `.`, `_`, `-`")
    base = subject.base or _asked("--base", "Base model")
    language = subject.language or _asked("--language", "Language, for example kk")
    text = subject.text or [_asked("--text", "Training text, a file or folder")]
    from lepta.plan.devices import devices_named
    from lepta.plan.propose import Wish, propose, starter_text, valid_of
    from lepta.plan.text import count_text

    known = subject.source_language
    valid = subject.valid or valid_of(text) or [_asked("--valid", "Held-out text, a file or folder")]
    source_text = subject.source_text or starter_text(known) or [_asked("--source-text", f"Training text in {known}")]
    source_valid = subject.source_valid or valid_of(source_text)
    if not source_valid:
        source_valid = [_asked("--source-valid", f"Held-out text in {known}")]
    device = devices_named([gpu])[0] if gpu else None
    wish = Wish(
        name=recipe.stem,
        base=base,
        variants=variant or [],
        language=language,
        text=text,
        valid=valid,
        source_language=known,
        source_text=source_text,
        source_valid=source_valid,
        gpus=gpus,
        device=device,
    )
    written = propose(wish)
    content: Any = parse_yaml(written, recipe)
    models = validated(Recipe, content, f"new {recipe}").variants.values()  # what is written can be read
    write_new_file(recipe, written, force)
    say(f"recipe: {recipe}", soft_wrap=True)
    if base in [variant.model for variant in models]:
        say("note:   a variant is the base itself; expected a model that was tuned from it", soft_wrap=True)
    named = [*text, *valid, *source_text, *source_valid]
    missing = [source for source in named if ":" not in source and not is_there(source)]
    if missing:
        say(f"note:   {', '.join(missing)}: not here yet, so the amount of text is a guess", soft_wrap=True)
    characters = count_text(text).characters
    if characters is not None and characters < FEW:
        say(f"note:   {characters:,} characters of text are few; {FEW:,} are a beginning", soft_wrap=True)
    options = f" --gpu {device.name} --gpus {gpus}" if device else ""
    say(f"next:   lepta plan {recipe}{options}", soft_wrap=True)
    say(f"        lepta adapt {recipe} --dry-run", soft_wrap=True)


def _asked(option: str, question: str) -> str:
    """Ask the user at a terminal; LeptaError where there is nobody to ask."""
    if not sys.stdin.isatty():
        raise LeptaError(f"new: {option} is missing, and there is no terminal to ask at; give it")
    return str(typer.prompt(question))
