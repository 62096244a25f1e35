"""`lepta plan`: what a recipe costs, before anything is downloaded or bought."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lepta.cli.common import MOST_GPUS, AsJson, console, print_json, say
from lepta.cli.recipes import RecipeFile
from lepta.core.errors import LeptaError
from lepta.core.tables import MOST_DAYS, duration, number_table, significant
from lepta.plan.devices import SPARE
from lepta.plan.training import CONTEXT, CPU_OVERHEAD, GIB
from lepta.recipe import read_recipe

UNKNOWN = "–"
NO_COST = "-"
MINUTE, DAY = 1 / 60, 24  # hours
FLOOR = f"Python and torch themselves ({CONTEXT / GIB:g} GiB on a GPU, {CPU_OVERHEAD / GIB:g} GiB on a CPU)"
View = tuple[Table, list[str]]  # a table, and lines to print below it

# Rows of the tables: fields of the plan. One that is zero or unknown in all columns is left out.
AMOUNTS = ("tokens", "swept_tokens", "tokens_under_original", "blocks", "steps", "tokens_per_step")
WEIGHTS = ("new_rows", "new_head", "old_rows", "old_head", "lora", "body", "trained", "frozen")
FLOPS = ("forward", "backward", "gradients", "attention", "head", "recomputed", "teacher", "total")
COMPUTING = {"distillation", "repair", "calibration"}  # parts of a plan that take time, beside its stages
MEMORY = ("frozen", "masters", "gradients", "optimizer", "activations", "loss", "overhead", "total")


def plan(
    recipe: RecipeFile,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            help="RTX-3090, RTX-4090, L4, A10, A100-40, A100-80, H100, H200, B200 or MI300X; repeat. Default: all."
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, max=MOST_GPUS, help="How many of them work together.")] = 1,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of a GPU's peak that training reaches, 0 to 1.")
    ] = 0.4,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of one device for an hour, in any currency, to tell the cost.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="YAML file with shapes of models that are not known here (see docs/plan.md).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a recipe costs before anything is bought: operations, hours, memory, disk.

    Needs neither the model's weights nor the network: sizes come from a folder's headers or config.json, or from a
    table of known models (Mistral, LLaMA 3 to 3.2, Qwen 2.5 to 3.5, Gemma 2 and 3, SmolLM2 and 3, Phi-3-mini). Text
    and tokenizers on this machine are counted and measured; all else is estimated, and marked so. The formulas are in
    docs/plan.md.

    If a stage does not fit a GPU, the table names the mildest change of the recipe with which it does: a smaller
    micro_batch (free), gradient_checkpointing (one forward pass more), weights sharded over several GPUs (FSDP2), or
    body_dtype: 4bit.

    Try: lepta plan mistral-7b/extended --gpus 8 --gpu H100
    """
    if math.isnan(mfu):  # neither below nor above a limit
        raise LeptaError("--mfu nan: expected a share from 0.01 to 1")
    if not math.isfinite(price or 0):
        raise LeptaError(f"--price {price}: expected a number, 0 or more")
    settings = read_recipe(recipe)  # before the imports below, which take seconds
    if models is not None and not models.is_file():
        raise LeptaError(f"--models {models}: no such file; expected YAML rows as docs/plan.md shows")
    from lepta.plan.plan import make_plan

    facts = make_plan(settings, gpu, gpus, mfu, models)
    _add_totals(facts["devices"], price)
    if as_json:
        print_json(facts)
        return
    base = facts["base"]
    shape = f"{base['layers']} layers of width {base['width']:,}; {base['shape_from']}"
    say(f"{facts['recipe']}: {base['name']}, {_count(base['weights'])} weights ({shape})")
    for line in _in_short(facts, named=bool(gpu)):
        say(line)
    for table, notes in _views(facts):
        console.print()
        console.print(table)
        for note in notes:
            say(note, style="dim")
    notes = list(facts["notes"])
    if not facts["stages"]:
        notes.append("no pre-training: the recipe has no section `pretrain`, so nothing of it is counted")
    for note in notes:
        say(f"\nNote: {note}")


def _add_totals(devices: list[dict[str, Any]], price: float | None) -> None:
    """Put all hours beside each device, and their cost if a price is given; this machine costs nothing."""
    for row in devices:
        row["hours_in_all"] = row["hours"] + row["distillation_hours"]
        row["hours_in_all"] += row.get("repair_hours", 0) + row.get("calibration_hours", 0)
        if price is not None and "here" not in row:
            row["cost"] = price * row["number"] * row["hours_in_all"]


def _computes(facts: dict[str, Any]) -> bool:
    """Whether anything in a plan takes time worth telling."""
    return bool(facts["stages"] or facts.keys() & COMPUTING)


def _in_short(facts: dict[str, Any], named: bool) -> Iterator[str]:
    """Time, cost and memory in a line for each device that was named; of all devices, the machine at hand alone."""
    if not _computes(facts):
        return
    for row in facts["devices"]:
        if not named and "here" not in row:
            continue
        needs = f"{_rough_time(row['hours_in_all'])} without evaluation"
        if row.get("busy"):
            needs += f" (this machine is busy: {row['busy']})"
        if "cost" in row:
            needs += f", cost {_price(row['cost'])}"
        fits = "fits" if row["fits"] else "does not fit as it stands"
        yield f"In short: {_device(row)}: {needs}; {fits} ({row['needs_gib']:,.1f} of {row['memory_gib']:,.1f} GiB)"


def _price(cost: float | None) -> str:
    """A cost, no finer than a hundredth."""
    if cost is None:
        return NO_COST
    return "< 0.01" if 0 < cost < 0.01 else significant(cost)


def _views(facts: dict[str, Any]) -> Iterator[View]:
    """The tables that have something to tell: a recipe may have neither pre-training nor calibration."""
    stages = facts["stages"]
    yield _vocabulary(facts["vocabulary"])
    if "distillation" in facts:
        yield _distillation(facts["distillation"])
    if stages:
        yield _training(stages, facts["text"])
        yield _flops(stages)
    if "repair" in facts:
        yield _repair(facts["repair"])
    if "calibration" in facts:
        yield _calibration(facts["calibration"])
    if stages:
        yield _memory(stages)
    if _computes(facts):
        yield _times(facts)
        yield _fits(facts["devices"])
    yield _disk(facts["disk"])


def _count(number: float | None) -> str:
    """A number with three digits and a unit."""
    if number is None:
        return UNKNOWN
    for size, unit in ((1e21, " Z"), (1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{significant(number / size)}{unit}"
    return f"{number:.0f}"


def _decimal(number: float | None, digits: int = 2) -> str:
    return UNKNOWN if number is None else f"{number:,.{digits}f}"


def _add_counts(table: Table, fields: Iterable[str], columns: Sequence[dict[str, Any]]) -> None:
    for field in fields:
        values = _each(columns, field)
        if any(values):
            table.add_row(field.replace("_", " "), *map(_count, values))


def _each(columns: Sequence[dict[str, Any]], field: str) -> list[Any]:
    """What all columns have in one field."""
    return [column[field] for column in columns]


def _vocabulary(part: dict[str, Any]) -> View:
    table = number_table("", "original", "new", "ratio", title=f"Vocabulary: {part['scenario']}")
    table.add_row("tokens", f"{part['original_tokens']:,}", f"{part['new_tokens']:,}", "")
    sizes = part["original_embedding_weights"], part["new_embedding_weights"]
    table.add_row("embedding weights", *map(_count, sizes), _decimal(sizes[1] / sizes[0]))
    shares = part["original_embedding_share"], part["new_embedding_share"]
    table.add_row("their share of the model", *map("{:.1%}".format, shares), "")
    weights = part["original_weights"], part["new_weights"]
    table.add_row("weights in all", *map(_count, weights), f"{1 + part['added_share']:.3f}")
    notes = []
    if part["new_tokens"] > part["original_tokens"] and part["new_weights"] < part["original_weights"]:
        notes.append("Fewer weights with more tokens: the original's matrices have rows without a token (padding).")
    for side in (part["target"], part["source"]):
        densities = side["original_characters_per_token"], side["new_characters_per_token"]
        ratio = densities[1] / densities[0] if all(densities) else None
        table.add_row(f"characters per token, {escape(side['language'])}", *map(_decimal, densities), _decimal(ratio))
        table.add_row("  operations to read the same text", "1", _decimal(side["inference_flops_ratio"]), "")
        context = side["context_characters"] or (None, None)
        table.add_row("  characters in the context", *map(_count, context), "")
        notes.append(f"{side['language']}: original {side['original_from']}; new {side['new_from']}")
    return table, notes


def _training(stages: Sequence[dict[str, Any]], text: dict[str, Any]) -> View:
    table = number_table("", *_each(stages, "name"), title="Training")
    table.add_row("trains", *_each(stages, "trains"))
    _add_counts(table, AMOUNTS, stages)
    table.add_section()
    _add_counts(table, WEIGHTS, _each(stages, "weights"))
    sides = (text["target"], text["source"])
    return table, [f"{side['language']}: {_text_note(side)}" for side in sides if side["sources"]]


def _text_note(side: dict[str, Any]) -> str:
    if side["characters"] is None:
        return f"amount of text not known ({side['how']})"
    size = f"{_count(side['characters'])} characters ({side['how']})"
    if not side["passes"]:  # unknown, or none of it is used
        return size
    return f"{size}, {_count(side['tokens'])} tokens; the budget goes {side['passes']:.2f} times through them"


def _flops(stages: Sequence[dict[str, Any]]) -> View:
    table = number_table("FLOP per token", *_each(stages, "name"), title="Operations")
    _add_counts(table, FLOPS, _each(stages, "flops_per_token"))
    table.add_row("[bold]FLOP of the stage[/]", *map(_count, _each(stages, "flops")))
    return table, [
        "Body 2 per weight and pass; attention 6 x layers x block x width of heads; head 2 per weight and pass."
    ]


def _distillation(cost: dict[str, Any]) -> View:
    table = number_table("", "", title="Token distillation")
    table.add_row("tokens", _count(cost["tokens"]))
    table.add_row("FLOP, hidden states", _count(cost["input_flops"]))
    table.add_row("FLOP, head", _count(cost["head_flops"]))
    table.add_row("FLOP, held-out passages", _count(cost["measuring_flops"]))
    table.add_row("memory, GiB", _decimal(cost["memory"] / GIB, 1))
    return table, [f"Memory: without {FLOOR}, which comes on top."]


def _repair(cost: dict[str, Any]) -> View:
    table = number_table("", "each variant", title="Repair")
    _add_counts(table, ("tokens", "head_tokens", "flops"), [cost])
    table.add_row("memory, GiB", _decimal(cost["memory_gib"], 1))
    return table, []


def _calibration(cost: dict[str, Any]) -> View:
    table = number_table("", "each variant", title="Self-calibration")
    _add_counts(table, cost, [cost])
    return table, []


def _memory(stages: Sequence[dict[str, Any]]) -> View:
    headings, blocks, columns = [], [], []
    for stage in stages:
        for sharding, parts in stage["memory_gib"].items():
            headings.append(stage["name"] if sharding == "one process" else f"{stage['name']}, {sharding}")
            blocks.append(f"{stage['micro_batch']}{' (checkpointed)' if stage['gradient_checkpointing'] else ''}")
            columns.append(parts)
    table = number_table("", *headings, title="Memory of one GPU, GiB")
    table.add_row("blocks at once", *blocks)
    for field in MEMORY:
        table.add_row(field, *(_decimal(parts[field], 1) for parts in columns))
    note = f"An estimate; what fits leaves {SPARE:.0%} of the memory free. No stage takes less than {FLOOR}."
    return table, [note]


def _times(facts: dict[str, Any]) -> View:
    devices = facts["devices"]
    caption = f"GPUs at {devices[0]['share_of_peak']:.0%} of their peak (--mfu); time as the recipe stands."
    times = {}
    if "distillation" in facts:
        times["distillation"] = "distillation_hours"
    if facts["stages"]:
        times["pre-training"] = "hours"
    if "repair" in facts:
        times["repair"] = "repair_hours"
    if "calibration" in facts:
        times["calibration"] = "calibration_hours"
        caption += " Calibration: as many tokens as it can take; answers, written token by token, reach less speed."
    caption += (
        " Vocabulary, initialisation, propagation and evaluation are not counted: minutes, hours with a benchmark."
    )
    if len(times) > 1:
        times["in all"] = "hours_in_all"
    headings, priced = [*times], "cost" in devices[0]
    if priced:
        headings.append("cost")
        caption += " Cost: --price, the same for each kind, x devices x hours in all."
    table = number_table("device", *headings, title="Time")
    for row in devices:
        cells = [_rough_time(row[field]) for field in times.values()]
        if priced:
            cells.append(_price(row.get("cost")))
        table.add_row(_device(row), *cells)
    return table, [caption]


def _fits(devices: Sequence[dict[str, Any]]) -> View:
    table = number_table("device", "needs", "has", "fits", title="Memory of each device, GiB")
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for row in devices:
        table.add_row(_device(row), f"{row['needs_gib']:,.1f}", f"{row['memory_gib']:,.1f}", _verdict(row))
    return table, []


def _device(row: dict[str, Any]) -> str:
    return escape(f"{row['number']} x {row['name']}" if row["number"] > 1 else row["name"])


def _rough_time(hours: float) -> str:
    """A duration no finer than an estimate can be, short enough for a table of four."""
    if hours < MINUTE:
        return "< 1 min"
    return f"> {MOST_DAYS} days" if hours > MOST_DAYS * DAY else duration(hours)


def _verdict(row: dict[str, Any]) -> str:
    if row["fits"]:
        return "[green]yes[/]"
    said = []
    for stage, change in row["changes"].items():
        which = f"{stage}: " if len(row["changes"]) > 1 else ""
        what = f"with {_change(change)} ({row['needs_then_gib'][stage]:.1f})" if change else "no"
        said.append(which + what)
    return "[yellow]" + escape("; ".join(said) or "no") + "[/]"


def _change(change: dict[str, Any]) -> str:
    words = [f"{change['sharding']} on {change['gpus']} GPUs"] if "sharding" in change else []
    words += [f"{name}: {str(value).lower()}" for name, value in change.items() if name not in ("sharding", "gpus")]
    return ", ".join(words)


def _disk(disk: dict[str, Any]) -> View:
    table = number_table("", "GB", title="Disk")
    for name, size in disk["parts"].items():
        table.add_row(escape(name), f"{size / 1e9:,.2f}")
    table.add_row("[bold]in all[/]", f"{disk['total'] / 1e9:,.2f}")
    return table, ["Blocks and checkpoints are deleted when their stage is done."]
