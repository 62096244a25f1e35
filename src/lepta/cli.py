"""Commands: parse, call, print. Everything they do can be called from Python too (see `lepta`)."""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from lepta.errors import LeptaError
from lepta.version import __version__
from lepta.vocabulary.scenarios import KeepBy, Scenario

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Give an open LLM, and all its instruct variants, a vocabulary for another language.\n\n"
    "Start with: lepta adapt recipes/demo.yaml",
)
vocab = typer.Typer(no_args_is_help=True, help="Build, check and measure vocabularies.")
app.add_typer(vocab, name="vocab")
patch = typer.Typer(no_args_is_help=True, help="Ship an adapted model without its body.")
app.add_typer(patch, name="patch")
console = Console()

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Output = Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output folder if it exists.")]
TokenizerPath = Annotated[
    str, typer.Option(help="HF folder, tokenizer.json, GGUF file, package:NAME/FILE or hub id OWNER/NAME[@REVISION].")
]
HardLink = Annotated[
    bool, typer.Option("--hard-link", help="Share unchanged files with the source: who edits one edits both.")
]
InputName = Annotated[
    str | None, typer.Option(help="Name of the input embedding tensor, for an architecture not known here.")
]
OutputName = Annotated[str | None, typer.Option(help="Name of the head's tensor, likewise.")]
ModelPath = Annotated[str, typer.Option(help="HF folder, GGUF file, package:NAME/FILE or hub id.")]


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


@app.command()
def adapt(
    recipe: Annotated[Path, typer.Argument(help="YAML file; recipes/demo.yaml is one to start from.")],
    start: Annotated[str | None, typer.Option("--from", help="Run this stage and all after it in any case.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run all stages in any case.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and what it costs; run nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: vocabulary, initialisation, pre-training, propagation, evaluation, report.

    What is up to date is skipped; what was interrupted goes on where it stopped.
    """
    from lepta.adapt import adapt as run_recipe
    from lepta.adapt import cost, pipeline_of, report_data
    from lepta.recipe import read_recipe
    from lepta.report.page import print_summary

    plan = read_recipe(recipe)
    if dry_run:
        verdicts = pipeline_of(plan).status(start, force)
        _print_status(verdicts, as_json, {"cost": cost(plan)})
        return
    run_recipe(plan, start, force, lambda line: Console(stderr=True).print(f"[dim]lepta[/] {line}", highlight=False))
    data = report_data(plan.output)
    if as_json:
        _print_json(data)
    else:
        print_summary(data, console)
        console.print(f"\nReport: {plan.output / 'report' / 'report.html'}", highlight=False)
        for name in plan.variants:
            console.print(f"Model:  {plan.output / 'propagated' / name}", highlight=False)


@app.command()
def status(recipe: Annotated[Path, typer.Argument(help="YAML file.")], as_json: AsJson = False) -> None:
    """Tell which stages of a recipe are up to date, and why the others are not."""
    from lepta.adapt import pipeline_of
    from lepta.recipe import read_recipe

    _print_status(pipeline_of(read_recipe(recipe)).status(), as_json)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a recipe that has run.")], as_json: AsJson = False
) -> None:
    """Print the numbers of a finished run and say where its page is."""
    from lepta.adapt import report_data
    from lepta.report.page import print_summary

    data = report_data(folder)
    if as_json:
        _print_json(data)
    else:
        print_summary(data, console)
        console.print(f"\nReport: {folder / 'report' / 'report.html'}", highlight=False)


@vocab.command("build")
def vocab_build(
    tokenizer: TokenizerPath,
    corpus: Annotated[
        list[str], typer.Option(help="Text file, folder, starter:ru/train or wordfreq:LANGUAGE; repeat.")
    ],
    output: Output,
    scenario: Annotated[
        Scenario,
        typer.Option(
            help="extended: keep the vocabulary, add tokens. optimized: keep its most useful part, add tokens. "
            "bpe, unigram: a new vocabulary."
        ),
    ] = "extended",
    add: Annotated[int | None, typer.Option(min=1, help="Number of new tokens.")] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Size of the whole new vocabulary, instead of --add; auto (extended): as many new tokens as make text "
            "cheapest for the model, with the curve."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="--size auto: the model that pays for a larger head (default: that of --tokenizer)."),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="optimized: tokens to keep, special ones not counted (default: half).")
    ] = None,
    keep_by: Annotated[
        KeepBy, typer.Option(help="optimized: keep the tokens most used in the corpus, or those of lowest rank.")
    ] = "frequency",
    script: Annotated[
        str, typer.Option(help="Unicode script of tokens added to old ones, such as Cyrillic (default: by the corpus).")
    ] = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Build a new vocabulary from a tokenizer and text."""
    from lepta.pipeline import publishing
    from lepta.vocabulary.build import build_vocabulary, save_vocabulary
    from lepta.vocabulary.source import open_tokenizer

    if (add is None) == (size is None):
        raise LeptaError("give either --add (number of new tokens) or --size (of the whole vocabulary)")
    original = open_tokenizer(tokenizer)
    with publishing(output, force) as folder:
        if size == "auto":
            built, facts = _cheapest_size(original, corpus, scenario, script, model or tokenizer, as_json)
        else:
            built = build_vocabulary(
                original, corpus, scenario, add=add, size=_number(size), keep=keep, keep_by=keep_by, script=script
            )
            facts = {}
        facts |= save_vocabulary(built, original, scenario, folder)
    _result({"output": str(output), **facts}, as_json)


def _number(size: str | None) -> int | None:
    if size is not None and not (size.isdigit() and int(size)):
        raise LeptaError(f"--size {size}: expected a number of tokens, or auto")
    return int(size) if size else None


def _cheapest_size(
    original: Any, corpus: list[str], scenario: str, script: str, model: str, as_json: bool
) -> tuple[Any, dict[str, Any]]:
    from lepta.checkpoints.folder import MODEL_FILES
    from lepta.checkpoints.weights import count_weights
    from lepta.locate import locate
    from lepta.vocabulary.build import choose_size

    if scenario != "extended":
        raise LeptaError("--size auto: needs --scenario extended")
    built, points, chosen = choose_size(original, corpus, script, count_weights(locate(model, hub_files=MODEL_FILES)))
    if not as_json:
        table = Table("new tokens", "tokens of text", "per 1,000 more", "cost of text", "weights added")
        shown = [point for point in points if point.added % max(1000, len(points) // 16 * 1000) == 0 or point == chosen]
        for before, point in zip([shown[0], *shown], shown, strict=False):
            step = (before.tokens - point.tokens) / max(point.added - before.added, 1) * 1000
            mark = "[bold]" if point == chosen else ""
            row = (f"{point.added:,}", f"{point.tokens:.1%}", f"-{step:.2%}", f"{point.compute:.1%}")
            table.add_row(*(mark + cell for cell in row), f"{mark}{point.embedding_weights / 1e6:,.1f} M")
        console.print(table)
    facts = {"added": chosen.added, "cost_of_text": chosen.compute}
    return built, facts | ({"curve": [vars(point) for point in points]} if as_json else {})


@vocab.command("check")
def vocab_check(
    tokenizer: TokenizerPath,
    original: Annotated[str | None, typer.Option(help="The tokenizer that it was made from.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Text of the target language; repeat.")] = None,
    other: Annotated[list[str] | None, typer.Option(help="Text whose ids must not change; repeat.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that a tokenizer is safe to use: a table of passes and failures, exit code 1 if any fails."""
    from lepta.corpus import read_documents
    from lepta.vocabulary.check import check_vocabulary
    from lepta.vocabulary.source import open_tokenizer

    checks = check_vocabulary(
        open_tokenizer(tokenizer),
        open_tokenizer(original) if original else None,
        list(read_documents(target)) if target else [],
        list(read_documents(other)) if other else [],
    )
    if as_json:
        _print_json([vars(check) for check in checks])
    else:
        table = Table("check", "result", Column("evidence", overflow="fold"))
        for check in checks:
            table.add_row(check.name, "[green]pass[/]" if check.passed else "[red]FAIL[/]", check.evidence)
        console.print(table)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


@vocab.command("measure")
def vocab_measure(
    tokenizer: Annotated[list[str], typer.Option(help="Tokenizer to measure; repeat to compare.")],
    text: Annotated[list[str], typer.Option(help="Text source; repeat.")],
    by_source: Annotated[bool, typer.Option("--by-source", help="For each source of text too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how much text a token holds, how many words it takes whole, and what of it a text never uses."""
    from lepta.corpus import read_labelled
    from lepta.report.compare import summaries
    from lepta.vocabulary.measure import measure_sources
    from lepta.vocabulary.source import open_tokenizer

    documents = list(read_labelled(text))
    rows = summaries({name: measure_sources(open_tokenizer(name).vocabulary(), documents) for name in tokenizer})
    if as_json:
        _print_json(rows if by_source else {name: _total(row) for name, row in rows.items()})
    else:
        _print_measures(rows, by_source)


@vocab.command("compare")
def vocab_compare(
    tokenizer: Annotated[list[str], typer.Option(help="Tokenizer; repeat to compare.")],
    text: Annotated[list[str], typer.Option(help="Text source; repeat.")],
    output: Annotated[Path, typer.Option(help="HTML page to write; it must not exist yet.")],
    examples: Annotated[int, typer.Option(min=0, help="Number of texts to show in pieces.")] = 6,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a page that shows tokenizers side by side: numbers for each source of text, and examples in pieces."""
    from lepta.report.compare import write_comparison

    facts = write_comparison(tokenizer, text, output, examples, force)
    if as_json:
        _print_json(facts)
    else:
        _print_measures(facts["tokenizers"], by_source=False)
        console.print(f"\nPage: {output}", highlight=False, markup=False)


def _total(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "sources"}


def _print_measures(rows: dict[str, dict[str, Any]], by_source: bool) -> None:
    """Print a table of measures: a row for each tokenizer, or for each source and tokenizer."""
    from lepta.report.compare import short_names

    named = list(zip(short_names(list(rows)), rows.values(), strict=True))
    parts = [("all text", name, row) for name, row in named]
    if by_source:
        sources = next(iter(rows.values()))["sources"]
        parts = [(source, name, row["sources"][source]) for source in sources for name, row in named] + parts
    table = Table(*([Column("source", overflow="fold")] if by_source else []), Column("tokenizer", overflow="fold"))
    for heading in ("tokens", "chars/\ntoken", "bytes/\ntoken", "words/\ntoken", "1-token\nwords", "unused\ntokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    for source, name, row in parts:
        ratios = (f"{row[unit]:.3f}" for unit in ("characters_per_token", "bytes_per_token", "words_per_token"))
        table.add_row(
            *([escape(source)] if by_source else []),
            escape(name),
            f"{row['tokens']:,}",
            *ratios,
            f"{row['single_token_words']:.1%}",
            f"{row['unused_tokens']:,} ({row['unused_share']:.1%})",
        )
    console.print(table)


@app.command("init")
def init(
    model: ModelPath,
    tokenizer: TokenizerPath,
    output: Output,
    pad_to: Annotated[int | None, typer.Option(min=1, help="Pad the rows to this multiple.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Give a model another vocabulary: each new token starts as the mean of its old pieces."""
    from lepta.embeddings.initialise import initialise
    from lepta.pipeline import publishing
    from lepta.vocabulary.source import open_tokenizer

    with _opened(model) as checkpoint, publishing(output, force) as folder:
        facts = initialise(checkpoint, open_tokenizer(tokenizer), folder, pad_to)
    _result({"output": str(output), **facts}, as_json)


@app.command()
def pretrain(
    model: Annotated[Path, typer.Option(help="HF folder with the new vocabulary, as lepta init writes it.")],
    text: Annotated[list[str], typer.Option(help="Text source of the target language; repeat.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on, in all.")],
    output: Output,
    source_text: Annotated[list[str] | None, typer.Option(help="Text of the language the model knows; repeat.")] = None,
    source_share: Annotated[float, typer.Option(min=0, max=0.99, help="Share of tokens from --source-text.")] = 0.0,
    valid: Annotated[list[str] | None, typer.Option(help="Held-out text for bits per byte; repeat.")] = None,
    new_rows_from: Annotated[
        int | None, typer.Option(min=0, help="Train only rows from this id on (the old vocabulary's size).")
    ] = None,
    block: Annotated[int, typer.Option(min=8, help="Block length in tokens.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Blocks per step.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    warmup_steps: Annotated[int, typer.Option(min=0)] = 5,
    weight_decay: Annotated[float, typer.Option(min=0, help="Not used with --new-rows-from.")] = 0.0,
    seed: int = 1,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train embeddings and head on text, the body frozen. (Use `adapt` for runs that can be resumed.)"""
    import shutil

    from lepta.adapt import CURVE
    from lepta.corpus import read_documents
    from lepta.evaluation.bits import WINDOW, windows
    from lepta.pipeline import CHECKPOINTS, publishing, write_json
    from lepta.recipe import PretrainSettings
    from lepta.training.pretrain import pretrain_folder

    settings = PretrainSettings(
        trains="embeddings" if new_rows_from is None else "new-rows",
        tokens=tokens,
        block=block,
        batch=batch,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        source_share=source_share,
    )
    target, source = list(read_documents(text)), list(read_documents(source_text)) if source_text else []
    held_out = windows(list(read_documents(valid)), WINDOW, settings.measure_characters) if valid else []
    with publishing(output, force) as folder:
        facts, curve = pretrain_folder(
            model, new_rows_from or 0, target, source, held_out, "target", settings, seed, folder
        )
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        write_json(folder / CURVE, {"curve": curve})
    measured = [entry for entry in curve if "loss" not in entry]
    _result({"output": str(output), **facts, "held_out": measured}, as_json)


@app.command()
def propagate(
    base: ModelPath,
    adapted: ModelPath,
    instruct: Annotated[
        list[str], typer.Option(help="A variant of the base: folder, GGUF or hub id; repeat for more.")
    ],
    output: Annotated[
        Path, typer.Option(help="Folder to write; it must not exist yet. Several variants go to folders below it.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="swap, overlap, conversion (the paper's), ridge, procrustes, delta, or auto: the one that predicts "
            "held-out tokens best."
        ),
    ] = "conversion",
    body_delta: Annotated[
        float | None,
        typer.Option(help="If training changed the body too: add that change so many times to the variant's body."),
    ] = None,
    weigh_by: Annotated[
        list[str] | None, typer.Option(help="Text in which tokens that are frequent weigh more in the fit; repeat.")
    ] = None,
    hard_link: HardLink = False,
    force: Force = False,
    input_embeddings: InputName = None,
    output_embeddings: OutputName = None,
    as_json: AsJson = False,
) -> None:
    """Carry trained embeddings from an adapted base model into instruct variants (LEP)."""
    from lepta.corpus import read_documents
    from lepta.embeddings.propagate import METHODS
    from lepta.embeddings.variant import count_tokens
    from lepta.embeddings.variant import propagate as propagate_variants
    from lepta.pipeline import publishing, write_manifest
    from lepta.vocabulary.source import open_tokenizer

    if method not in (*METHODS, "auto"):
        raise LeptaError(f"--method {method}: unknown; known are {', '.join(METHODS)}, auto")
    targets = [output] if len(instruct) == 1 else [output / _name_of(source) for source in instruct]
    if len(set(targets)) < len(targets):
        raise LeptaError(f"--instruct: two variants with the name {targets[0].name}; give their folders other names")
    with ExitStack() as stack:
        base_model, adapted_model, *variants = (
            stack.enter_context(_opened(source, input_embeddings, output_embeddings))
            for source in (base, adapted, *instruct)
        )
        folders = [stack.enter_context(publishing(target, force)) for target in targets]
        counts = None
        if weigh_by:
            counts = count_tokens(open_tokenizer(adapted_model.folder).vocabulary(), list(read_documents(weigh_by)))
        facts = propagate_variants(
            base_model,
            adapted_model,
            list(zip(variants, folders, strict=True)),
            cast(Any, method),
            body_delta=body_delta,
            token_counts=counts,
            hard_link=hard_link,
        )
        for name, variant, folder, fact in zip(instruct, variants, folders, facts, strict=True):
            inputs = {"base": base_model.folder, "adapted": adapted_model.folder, "instruct": variant.folder}
            settings = {"method": method, "body_delta": body_delta}
            sources = {"base": base, "adapted": adapted, "instruct": name, "weigh_by": weigh_by or []}
            texts = {"weigh_by": weigh_by} if weigh_by else {}
            write_manifest("propagate", folder, inputs, settings, fact, sources, texts)
    results = [{"output": str(target), **fact} for target, fact in zip(targets, facts, strict=True)]
    if as_json:
        _print_json(results[0] if len(results) == 1 else results)
    else:
        _print_maps(results)


@patch.command("export")
def patch_export(
    original: ModelPath,
    adapted: ModelPath,
    output: Output,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write what turns the original model into the adapted one: new rows and tokenizer, without the body."""
    from lepta.embeddings.patch import export_patch
    from lepta.pipeline import publishing

    with _opened(original) as before, _opened(adapted) as after, publishing(output, force) as folder:
        facts = export_patch(before, after, folder)
    _result({"output": str(output), **facts}, as_json)


@patch.command("apply")
def patch_apply(
    patch: Annotated[str, typer.Option(help="Folder or hub id of the patch.")],
    model: Annotated[str, typer.Option(help="The original model: folder, GGUF or hub id.")],
    output: Output,
    hard_link: HardLink = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Turn the original model into the adapted one. The patch knows its model by hashes and refuses any other."""
    from lepta.embeddings.patch import apply_patch
    from lepta.pipeline import publishing

    with _opened(model) as checkpoint, publishing(output, force) as folder:
        facts = apply_patch(patch, checkpoint, folder, hard_link)
    _result({"output": str(output), **facts}, as_json)


def _name_of(source: str) -> str:
    return source.partition("@")[0].rstrip("/").rpartition("/")[2].removesuffix(".gguf")


def _print_maps(results: list[dict[str, Any]]) -> None:
    """What was written, and how well each map predicts tokens it has not seen."""
    for result in results:
        console.print(f"[bold]{escape(result['output'])}[/]", highlight=False)
        table = Table("matrix", "map", "rows", "condition", "residual", "held-out error", "held-out R2", "without map")
        for name, fit in result["maps"].items():
            held_out = fit["held_out"]
            table.add_row(
                escape(name),
                fit["method"],
                f"{fit['rows']:,}",
                f"{fit['condition']:.3g}",
                f"{fit['residual']:.5f}",
                f"{held_out['error']:.5f}" if held_out else "",
                f"{held_out['r2']:.5f}" if held_out else "",
                f"{held_out['errors']['swap']:.5f}" if held_out and "swap" in held_out["errors"] else "",
            )
        console.print(table)
        for name, fit in result["maps"].items():
            if len(errors := (fit["held_out"] or {"errors": {}})["errors"]) > 2:
                ranked = sorted(errors.items(), key=lambda item: item[1])
                listed = ", ".join(f"{method} {error:.5f}" for method, error in ranked)
                console.print(f"{escape(name)}, held-out error of each method: {listed}", highlight=False)


def _opened(source: str, input_name: str | None = None, output_name: str | None = None) -> Any:
    from lepta.checkpoints.load import opened

    return opened(source, input_name, output_name)


def _result(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(facts)
        return
    for name, value in facts.items():
        console.print(f"{_words(name)}: {_short(value)}", highlight=False, markup=False)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(value: Any) -> str:
    match value:
        case dict():
            return ", ".join(f"{_words(key)} {_short(part)}" for key, part in value.items())
        case list():
            return "; ".join(map(_short, value))
        case float():
            return f"{value:.4g}"
        case int():
            return f"{value:,}"
        case _:
            return str(value)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def _print_status(verdicts: list[Any], as_json: bool, extra: dict[str, Any] | None = None) -> None:
    rows = [{"stage": v.stage.name, "current": v.current, "reason": v.reason} for v in verdicts]
    if as_json:
        _print_json({"stages": rows, **(extra or {})})
        return
    table = Table("stage", "", "why")
    for row in rows:
        table.add_row(row["stage"], "[green]current[/]" if row["current"] else "[yellow]to run[/]", row["reason"])
    console.print(table)
    for name, value in (extra or {}).items():
        console.print(f"\nEstimated {name} of pre-training, if it runs:", highlight=False)
        _result(value, as_json=False)


def main() -> None:
    """Run the command line; errors that users can mend end in one line and exit code 2."""
    debug = "--debug" in sys.argv
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        _quiet_libraries()
        app()
    except LeptaError as error:
        if debug:
            raise
        sys.stderr.write(f"lepta: {' '.join(str(error).split())}\n")
        sys.exit(2)


def _quiet_libraries() -> None:
    """Warnings and bars of the libraries below say nothing that a user can act on."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
