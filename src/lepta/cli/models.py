"""Commands that turn model folders into model folders without training: initialise, propagate, patch."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from lepta.cli.common import (
    AsJson,
    Force,
    HardLink,
    InputName,
    ModelPath,
    Output,
    OutputName,
    TokenizerPath,
    check_places,
    console,
    opened,
    print_json,
    print_warnings,
    result,
    say,
)
from lepta.cli.options import Flags, takes_settings
from lepta.core.errors import LeptaError
from lepta.core.output import publishing
from lepta.core.tables import number_table
from lepta.embeddings.settings import PropagateSettings
from lepta.stages import write_manifest
from lepta.text.locate import locate
from lepta.text.sources import read_documents
from lepta.vocabulary.scenarios import LARGEST_PADDING

patch = typer.Typer(no_args_is_help=True, help="Ship an adapted model without its body.")


def init(
    model: ModelPath,
    tokenizer: TokenizerPath,
    output: Output,
    pad_to: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_PADDING, help="Pad the rows to this multiple.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="What a GGUF file becomes; default: float32. A folder keeps its own."),
    ] = None,
    input_embeddings: InputName = None,
    output_embeddings: OutputName = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Give a model another vocabulary: each new token starts as the mean of its old pieces.

    Try: lepta init --model Qwen/Qwen3-0.6B-Base --tokenizer my/vocabulary --output my/initialised
    """
    check_places([model, tokenizer], [output], force)
    from lepta.embeddings.initialise import initialise
    from lepta.vocabulary.source import TOKENIZER_FILES, open_tokenizer

    with opened(model, input_embeddings, output_embeddings, dtype) as checkpoint, publishing(output, force) as folder:
        facts = initialise(checkpoint, open_tokenizer(tokenizer), folder, pad_to)
        inputs = {"model": checkpoint.folder, "tokenizer": locate(tokenizer, hub_files=TOKENIZER_FILES)}
        sources = {"model": model, "tokenizer": tokenizer}
        write_manifest("init", folder, inputs, {"pad_to": pad_to, "dtype": dtype}, facts, sources)
    result({"output": str(output), **facts}, as_json)


@takes_settings
def propagate(
    base: ModelPath,
    adapted: ModelPath,
    instruct: Annotated[
        list[str], typer.Option(help="A variant of the base: folder, GGUF or hub id; repeat for several.")
    ],
    output: Annotated[
        Path, typer.Option(help="Folder to write; it must not exist yet. Several variants go to folders below it.")
    ],
    settings: Annotated[PropagateSettings, Flags()],
    valid: Annotated[
        list[str] | None, typer.Option(help="Held-out text to choose by, in all languages that count; may be repeated.")
    ] = None,
    weigh_by: Annotated[
        list[str] | None,
        typer.Option(help="Text in which tokens that are frequent weigh more in the fit; repeat for several."),
    ] = None,
    hard_link: HardLink = False,
    force: Force = False,
    input_embeddings: InputName = None,
    output_embeddings: OutputName = None,
    as_json: AsJson = False,
) -> None:
    """Carry trained embeddings from an adapted base model into instruct variants (LEP).

    Try: lepta propagate --base BASE --adapted my/adapted --instruct CHAT --method auto --output my/chat
    """
    targets = [output] if len(instruct) == 1 else [output / _name_of(source) for source in instruct]
    if len(set(targets)) < len(targets):
        raise LeptaError(f"--instruct: two variants with the name {targets[0].name}; give their folders other names")
    check_places([base, adapted, *instruct], targets, force)
    from lepta.embeddings.propagate import count_tokens
    from lepta.evaluation.sweep import Judge, propagate_best
    from lepta.vocabulary.source import open_tokenizer

    with ExitStack() as stack:
        sources = (base, adapted, *instruct)
        models = [stack.enter_context(opened(one, input_embeddings, output_embeddings)) for one in sources]
        folders = [stack.enter_context(publishing(target, force)) for target in targets]
        counts = None
        if weigh_by:
            counts = count_tokens(open_tokenizer(models[1].folder).vocabulary(), list(read_documents(weigh_by)))
        judge = Judge.of(valid or [], settings.answers) if settings.several else None
        pairs = list(zip(models[2:], folders, strict=True))
        facts = propagate_best(models[0], models[1], pairs, settings, judge, token_counts=counts, hard_link=hard_link)
        named_texts = (("weigh_by", weigh_by), ("valid", valid), ("answers", settings.answers))
        texts = {label: names for label, names in named_texts if names}
        key = settings.model_dump(exclude={"answers"})
        for name, variant, folder, fact in zip(instruct, models[2:], folders, facts, strict=True):
            inputs = {"base": models[0].folder, "adapted": models[1].folder, "instruct": variant.folder}
            named = {"base": base, "adapted": adapted, "instruct": name, **texts}
            write_manifest("propagate", folder, inputs, key, fact, named, texts)
    results = [{"output": str(target), **fact} for target, fact in zip(targets, facts, strict=True)]
    if as_json:
        print_json(results[0] if len(results) == 1 else results)
    else:
        _print_maps(results)


def _name_of(source: str) -> str:
    return source.partition("@")[0].rstrip("/").rpartition("/")[2].removesuffix(".gguf")


def _print_maps(results: list[dict[str, Any]]) -> None:
    """What was written, and how well each map predicts tokens it has not seen."""
    for written in results:
        say(f"output: {written['output']}")
        table = number_table("matrix", "map", "residual", "held-out\nerror", "held-out\nR2", "error\nof swap")
        for name, fit in written["maps"].items():
            held_out, cells = fit["held_out"], ["", "", ""]
            if held_out:
                cells = [f"{held_out['error']:.3g}", f"{held_out['r2']:.6g}", f"{held_out['errors']['swap']:.3g}"]
            table.add_row(escape(name), fit["method"], f"{fit['residual']:.3g}", *cells)
        console.print(table)
        for name, fit in written["maps"].items():
            errors, whole = fit["held_out"].get("errors", {}), fit["held_out"].get("whole", {})
            if errors.get("swap") == 0:
                say(f"{name}: the variant's rows are the base's own, so no map is needed")
            elif whole:
                ranked = sorted(whole.items(), key=lambda item: item[1])
                listed = ", ".join(f"{method} {error:.3g} ({errors[method]:.3g})" for method, error in ranked)
                what = "error over the whole new vocabulary by method, the least is taken (on held-out tokens alone)"
                say(f"{name}, {what}: {listed}")
        if chosen := written.get("chosen"):
            _print_chosen(chosen)
        print_warnings(written["warnings"])


def _print_chosen(chosen: dict[str, Any]) -> None:
    """What was tried, and by what it was judged."""
    say(f"judged by {chosen['by']}")
    if "tried" not in chosen:
        return
    measures = [name for name in chosen["tried"][0] if name.endswith("bits_per_byte")]
    table = number_table("method", "delta scale", "body delta", *(name.replace("_", " ") for name in measures))
    for way in chosen["tried"]:
        body = "" if way["body_delta"] is None else f"{way['body_delta']:g}"
        table.add_row(way["method"], f"{way['delta_scale']:g}", body, *(f"{way[name]:.4f}" for name in measures))
    console.print(table)
    why = f" ({chosen['why']})" if "why" in chosen else ""
    say(f"taken: {chosen['method']}, delta scale {chosen['delta_scale']:g}{why}")


@patch.command("export")
def patch_export(
    original: ModelPath,
    adapted: ModelPath,
    output: Output,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write what turns the original model into the adapted one: new rows and tokenizer, without the body.

    Try: lepta patch export --original BASE --adapted my/adapted --output my/patch
    """
    check_places([original, adapted], [output], force)
    from lepta.embeddings.patch import export_patch

    with opened(original) as before, opened(adapted) as after, publishing(output, force) as folder:
        facts = export_patch(before, after, folder)
        inputs = {"original": before.folder, "adapted": after.folder}
        write_manifest("patch export", folder, inputs, {}, facts, {"original": original, "adapted": adapted})
    result({"output": str(output), **facts}, as_json)


@patch.command("apply")
def patch_apply(
    patch: Annotated[str, typer.Option(help="Folder or hub id of the patch.")],
    model: Annotated[str, typer.Option(help="The original model: folder, GGUF or hub id.")],
    output: Output,
    hard_link: HardLink = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Turn the original model into the adapted one. The patch knows its model by hashes and refuses any other.

    Try: lepta patch apply --patch my/patch --model BASE --output my/again
    """
    check_places([model, patch], [output], force)
    from lepta.embeddings.patch import PATCH_FILES, apply_patch

    place = locate(patch, hub_files=PATCH_FILES)
    with opened(model) as checkpoint, publishing(output, force) as folder:
        facts = apply_patch(place, checkpoint, folder, hard_link)
        inputs = {"patch": place, "model": checkpoint.folder}
        write_manifest("patch apply", folder, inputs, {}, facts, {"patch": patch, "model": model})
    result({"output": str(output), **facts}, as_json)
