"""Commands that turn model folders into model folders without training: initialise, propagate, patch."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import Field
from rich.markup import escape

from lepta.card import hub_id_of, step_of
from lepta.cli.common import (
    AsJson,
    Force,
    ModelPath,
    Output,
    TokenizerPath,
    Writing,
    check_places,
    console,
    log,
    opened,
    print_results,
    print_warnings,
    result,
    say,
)
from lepta.cli.options import WRITING, WRITING_ANEW, Flags, takes_settings
from lepta.cli.words import spelt
from lepta.core.errors import LeptaError
from lepta.core.output import publishing
from lepta.core.settings import Section, nonempty
from lepta.core.tables import number_table
from lepta.embeddings.settings import PropagateSettings
from lepta.stages import write_manifest
from lepta.text.locate import locate
from lepta.text.sources import read_documents
from lepta.vocabulary.settings import LARGEST_PADDING

NAMES = Flags(headings={"": "Options"})

patch = typer.Typer(no_args_is_help=True, help="Ship an adapted model without its body.")


class TensorNames(Section):
    """What the matrices with a row for each token are called."""

    input_embeddings: str | None = Field(
        default=None, description="Name of the input embedding tensor, for an architecture not known here"
    )
    output_embeddings: str | None = Field(default=None, description="Name of the head's tensor, likewise")


@takes_settings
def init(
    model: ModelPath,
    tokenizer: TokenizerPath,
    output: Output,
    names: Annotated[TensorNames, NAMES],
    writing: Annotated[Writing, WRITING_ANEW],
    pad_to: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_PADDING, help="Pad the rows to this multiple.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="What a GGUF file becomes; default: float32. A folder keeps its own."),
    ] = None,
) -> None:
    """Give a model another vocabulary: each new token starts as the mean of its old pieces.

    Try: lepta init --model Qwen/Qwen3-0.6B-Base --tokenizer my/vocabulary --output my/initialised
    """
    check_places([model, tokenizer], [output], writing.force)
    from lepta.embeddings.initialise import initialise
    from lepta.vocabulary.source import TOKENIZER_FILES, open_tokenizer

    tensors = names.input_embeddings, names.output_embeddings
    with opened(model, *tensors, dtype) as checkpoint, publishing(output, writing.force) as folder:
        facts = initialise(checkpoint, open_tokenizer(tokenizer), folder, pad_to)
        inputs = {"model": checkpoint.folder, "tokenizer": locate(tokenizer, hub_files=TOKENIZER_FILES)}
        sources = {"model": model, "tokenizer": tokenizer}
        write_manifest("init", folder, inputs, {"pad_to": pad_to, "dtype": dtype}, facts, sources)
    result({"output": str(output), **facts}, writing.as_json, "rows")


class PropagateTexts(Section):
    """Text that propagation reads."""

    valid: list[str] = Field(
        default_factory=list,
        description="Held-out text to choose by, in all languages that count. --method auto then loads the variant "
        "seven times: about 10 minutes for 135M weights on 2 cores",
    )
    weigh_by: list[str] = Field(
        default_factory=list, description="Text in which tokens that are frequent weigh more in the fit"
    )


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
    texts: Annotated[PropagateTexts, NAMES],
    names: Annotated[TensorNames, NAMES],
    writing: Annotated[Writing, WRITING],
) -> None:
    """Carry trained embeddings from an adapted base model into instruct variants (LEP).

    Try: lepta propagate --base BASE --adapted my/adapted --instruct CHAT --method auto --output my/chat
    """
    targets = [output] if len(instruct) == 1 else [output / _name_of(source) for source in instruct]
    if len(set(targets)) < len(targets):
        raise LeptaError(f"--instruct: two variants with the name {targets[0].name}; give their folders other names")
    check_places([base, adapted, *instruct], targets, writing.force)
    from lepta.embeddings.propagate import count_tokens
    from lepta.evaluation.sweep import Judge, propagate_best
    from lepta.vocabulary.source import open_tokenizer

    # Text is read first: models take minutes.
    weighing = list(read_documents(texts.weigh_by)) if texts.weigh_by else []
    judge = Judge.of(texts.valid, settings.answers) if settings.several else None
    with ExitStack() as stack:
        sources = (base, adapted, *instruct)
        tensors = names.input_embeddings, names.output_embeddings
        models = [stack.enter_context(opened(one, *tensors)) for one in sources]
        folders = [stack.enter_context(publishing(target, writing.force)) for target in targets]
        made = step_of(models[1].folder)
        if made and made.kind and made.kind.step == "initialisation":
            log(f"note: {adapted}: nothing in it was trained since `lepta init`, so variants get means of old rows")
        options: dict[str, Any] = {"hard_link": writing.hard_link}
        if weighing:
            vocabulary = open_tokenizer(models[1].folder).vocabulary()
            options["token_counts"] = count_tokens(vocabulary, weighing)
        pairs = list(zip(models[2:], folders, strict=True))
        facts = propagate_best(models[0], models[1], pairs, settings, judge, **options)
        read = nonempty({"weigh_by": texts.weigh_by, "valid": texts.valid, "answers": settings.answers})
        key = settings.model_dump(exclude={"answers"})
        for name, variant, folder, fact in zip(instruct, models[2:], folders, facts, strict=True):
            inputs = {"base": models[0].folder, "adapted": models[1].folder, "instruct": variant.folder}
            named = {"base": base, "adapted": adapted, "instruct": name, **read}
            write_manifest("propagate", folder, inputs, key, fact, named, read)
    results = [{"output": str(target), **fact} for target, fact in zip(targets, facts, strict=True)]
    if writing.as_json:
        print_results(results)
    else:
        _print_maps(results)


def _name_of(source: str) -> str:
    return (hub_id_of(source) or source).rstrip("/").rpartition("/")[2].removesuffix(".gguf")


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
        say("Errors are relative to the size of the variant's rows; swap is no map. R2 is 1 where all is predicted.")
        for name, fit in written["maps"].items():
            errors, whole = fit["held_out"].get("errors", {}), fit["held_out"].get("whole", {})
            if errors.get("swap") == 0:
                say(f"{name}: the variant's rows are the base's own, so no map is needed")
            elif whole:
                _print_errors(name, fit["method"], errors, whole)
        if chosen := written.get("chosen"):
            _print_chosen(chosen)
        print_warnings(written["warnings"])


def _print_errors(name: str, taken: str, errors: dict[str, float], whole: dict[str, float]) -> None:
    """The methods by what decided between them where no text was read."""
    table = number_table("method", "held-out\nerror", "error over\nall tokens", "")
    for method, error in sorted(whole.items(), key=lambda item: item[1]):
        table.add_row(method, f"{errors[method]:.3g}", f"{error:.3g}", "taken" if method == taken else "")
    console.print(table)
    say(
        f"{name}: {taken} is taken, which has the least error over all tokens of the new vocabulary. The held-out "
        "error is of new tokens; delta and anchored have none in tokens that both vocabularies share."
    )


def _print_chosen(chosen: dict[str, Any]) -> None:
    """What was tried, by what it was judged, and why one was taken."""
    say(f"judged by {chosen['by']}")
    if "tried" not in chosen:
        return
    tried = chosen["tried"]
    measures = [name for name in tried[0] if name.endswith("bits_per_byte")]
    settings = []
    for name in ("delta_scale", "body_delta"):
        values = {way[name] for way in tried}
        if len(values) > 1:
            settings.append(name)
    heads = list(map(spelt, [*settings, *measures]))
    why = "the fewest bits per byte"
    if len(measures) > 1:
        heads.append("of both,\nsum")
        why += ", of text and answers together"
    table = number_table("method", *heads, "")
    for way in sorted(tried, key=lambda way: sum(map(way.get, measures))):
        scores = list(map(way.get, measures))
        if len(measures) > 1:
            scores.append(sum(scores))
        cells = [f"{way[name]:g}" for name in settings] + [f"{score:.4f}" for score in scores]
        taken = all(way[name] == chosen[name] for name in ("method", "delta_scale", "body_delta"))
        table.add_row(way["method"], *cells, "taken" if taken else "")
    console.print(table)
    say(f"taken: {chosen['method']}, delta scale {chosen['delta_scale']:g} ({chosen.get('why', why)})")


@patch.command("export")
def patch_export(
    original: ModelPath, adapted: ModelPath, output: Output, force: Force = False, as_json: AsJson = False
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
    result({"output": str(output), **facts}, as_json, "rows")


@patch.command("apply")
@takes_settings
def patch_apply(
    patch: Annotated[str, typer.Option(help="Folder or hub id of the patch.")],
    model: Annotated[str, typer.Option(help="The original model: folder, GGUF or hub id.")],
    output: Output,
    writing: Annotated[Writing, WRITING],
) -> None:
    """Turn the original model into the adapted one. The patch knows its model by hashes and refuses any other.

    Try: lepta patch apply --patch my/patch --model BASE --output my/again
    """
    check_places([model, patch], [output], writing.force)
    from lepta.embeddings.patch import PATCH_FILES, apply_patch

    place = locate(patch, hub_files=PATCH_FILES)
    with opened(model) as checkpoint, publishing(output, writing.force) as folder:
        facts = apply_patch(place, checkpoint, folder, writing.hard_link)
        inputs = {"patch": place, "model": checkpoint.folder}
        write_manifest("patch apply", folder, inputs, {}, facts, {"patch": patch, "model": model})
    result({"output": str(output), **facts}, writing.as_json, "rows")
