"""The command line. Commands and what they need are imported when they are called: `lepta --help` imports none.

Try: lepta --help
"""

import os
import re
import sys
import tempfile
import traceback
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from lepta.cli.signals import Signals
from lepta.core.errors import LeptaError, disk_is_full, printable, reason_of
from lepta.version import __version__

# Command -> module that has it under that name, and the first line of its help (a test compares them).
COMMANDS = {
    "adapt": ("recipes", "Run a recipe: vocabulary, initialisation, distillation, training, propagation, report."),
    "status": ("recipes", "Tell which stages of a recipe are up to date, and why the others are not."),
    "report": ("recipes", "Print the numbers of a finished run and say where its page is."),
    "doctor": ("doctor", "Tell what is installed and what this machine can do: versions, devices, packages, disk."),
    "new": ("new", "Write a recipe to begin with, from a model, a language and text; ask for what is not given."),
    "recipes": ("recipes", "List, show and copy the recipes that come with LEPTA."),
    "plan": ("plan", "Tell what a recipe costs before anything is bought: operations, hours, memory, disk."),
    "corpus": ("corpus", "Make training text out of raw text."),
    "vocab": ("vocabulary", "Build, check and measure vocabularies."),
    "init": ("models", "Give a model another vocabulary: each new token starts as the mean of its old pieces."),
    "distill": ("training", "Learn the rows of new tokens from the original model, which reads the same text."),
    "pretrain": ("training", "Train embeddings and head on text, the body frozen or not."),
    "propagate": ("models", "Carry trained embeddings from an adapted base model into instruct variants (LEP)."),
    "repair": (
        "training",
        "Train a propagated instruct model on text, with its original as the teacher; no conversations are needed.",
    ),
    "calibrate": ("training", "Train a propagated instruct model on graded answers of the original and on copies."),
    "tune": ("training", "Tune an instruct model on conversations; the loss counts what the assistant says."),
    "measure": ("measure", "Measure how well models predict a text: bits per byte, comparable between vocabularies."),
    "evaluate": ("evaluate", "Compare models: minimal pairs, instructions, answers side by side."),
    "check": ("deployment", "Tell which programs run a model folder as it is, and what is left to do for the others."),
    "publish": ("deployment", "Put a model folder on the Hugging Face hub, with its card, in one commit."),
    "export": ("export", "Write a model for another program, or a GGUF file as a folder."),
    "patch": ("models", "Ship an adapted model without its body."),
    "darumeru": ("darumeru", "Measure a model on the 17 tasks of the Darumeru benchmark."),
}


# typer carries a private copy of click, whose formatter has no type that could be imported.
class Help(typer.Context.formatter_class):  # type: ignore[misc, valid-type]
    """Help whose lines end at spaces alone: an option that a hyphen cuts in two cannot be read, or copied."""

    def write_text(self, text: str) -> None:
        """Write a paragraph."""
        super().write_text(_whole_words(text))

    def write_dl(self, rows: Any, *arguments: Any, **options: Any) -> None:
        """Write names with their texts; an option that may be repeated says so in its text."""
        rows = [(LIST.sub(r"<\1>", name), _whole_words(text)) for name, text in rows]
        super().write_dl(rows, *arguments, **options)

    def getvalue(self) -> str:
        """What was written."""
        return super().getvalue().replace(NO_BREAK, "-")


def _whole_words(text: str) -> str:
    return text.replace("-", NO_BREAK)


class HelpContext(typer.Context):
    """What a command is called with."""

    formatter_class = Help


class Command(TyperCommand):
    """A command whose help shows options under the headings that they name (`rich_help_panel`)."""

    context_class = HelpContext

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """List arguments, options without a heading, then heading by heading."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            heading = getattr(parameter, "rich_help_panel", None)
            if heading is None:
                heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if record := parameter.get_help_record(ctx):
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class Group(TyperGroup):
    """A group of commands whose help shows the first line of each, wrapped and never cut."""

    context_class = HelpContext

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands."""
        rows = []
        for name, command in self.commands.items():
            first_line = (command.help or "").partition("\n\n")[0]
            rows.append((name, " ".join(first_line.split())))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class LazyGroup(Group):
    """The commands of `COMMANDS`, each imported when it is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, first_line) in COMMANDS.items():
            self.commands[name] = TyperCommand(name, help=first_line)  # for help, and to suggest one on a typing error

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        found = getattr(import_module(f"lepta.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        if isinstance(found, typer.Typer):
            found.info.cls = Group
            for inner in found.registered_commands:
                inner.cls = Command
        else:
            command, found = found, typer.Typer(context_settings=HELP_NAMES)
            found.command(name=cmd_name, cls=Command)(command)
        found._add_completion = False
        found.rich_markup_mode = None
        made = typer.main.get_command(found)
        made.name = cmd_name
        return made


LIST = re.compile(r"<list\[(\w+)\]>")  # what typer says of an option that may be repeated
NO_BREAK = "\u2011"  # a hyphen at which no line ends
BUG = 70  # EX_SOFTWARE of sysexits.h
HELP_NAMES = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,  # its tables cut long options at 80 columns
    pretty_exceptions_enable=False,
    context_settings=HELP_NAMES,
    help="Give an open LLM, and all its instruct variants, a vocabulary for another language.\n\n"
    "Start with: lepta doctor, then lepta adapt demo",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; errors that users can mend end in one line and exit code 2, others in one and 70."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    _quiet_libraries()
    signals = Signals()
    try:
        app()
    except BaseException as error:  # libraries in Rust panic with one that is no Exception
        signals.over()
        if signals.code:  # whatever became of the exception that the signal raised
            sys.exit(signals.code)
        if debug or isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        message, code = _ending(error)
        sys.stderr.write(f"lepta: {printable(' '.join(message.split()))}\n")
        sys.exit(code)


def _ending(error: BaseException) -> tuple[str, int]:
    """What is said of an exception, and the exit code."""
    space, reason = "free space, or name another place that can be written", reason_of(error)
    if isinstance(error, LeptaError):
        return str(error), 2
    if isinstance(error, OSError):  # a full disk, a folder that is read-only, a name that is too long
        return f"{error.filename or 'files'}: {reason}; {space}", 2
    if disk_is_full(error):  # torch and safetensors report it by classes of their own
        return f"files: the disk is full ({reason}); {space}", 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported
        return f"memory: not enough ({reason}); take smaller batches, or a smaller model", 2
    return f"this is an error in LEPTA: {type(error).__name__}: {reason}; {_kept_traceback()}", BUG


def _kept_traceback() -> str:
    """Write the traceback that is being handled into a file, as a run may have taken hours; what to do with it."""
    text = printable(traceback.format_exc())
    try:
        with tempfile.NamedTemporaryFile("w", prefix="lepta-error-", suffix=".txt", delete=False) as file:
            file.write(text)
    except OSError:
        sys.stderr.write(text)
        return "please report it, with the traceback above"
    return f"please report it, with the traceback in {file.name}"


def _quiet_libraries() -> None:
    """Warnings and bars of the libraries below say nothing that a user can act on."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
