"""Commands that train: rows from the original model, text, conversations, and a model's own answers."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field, model_validator

from lepta.calibration.settings import CalibrateSettings, CopySettings, EffectSettings, ModelOrServer
from lepta.cli.common import MODEL_KINDS, OUTPUT, ModelPath, Output, check_places, opened, print_json, result, say
from lepta.cli.options import WRITING, Flags, takes_settings
from lepta.cli.recipes import print_status
from lepta.cli.words import words_of
from lepta.core.errors import LeptaError
from lepta.core.output import read_manifest
from lepta.core.reading import read_json
from lepta.core.settings import LARGEST_SEED, Section, Sources, nonempty
from lepta.distillation.settings import DistillSettings, RepairSettings
from lepta.stages import Pipeline, Stage
from lepta.text.locate import locate
from lepta.text.settings import Language, Text, check_held_out
from lepta.text.sources import BENCHMARK
from lepta.training.settings import Conversations, PreferenceSettings, PretrainSettings, TuneSettings, check_batch

ORIGINAL = f"model before its vocabulary changed: {MODEL_KINDS}"
ApartFrom = Annotated[
    list[str] | None, typer.Option(help="Training text that copies share no 13 words with; repeat for several.")
]


class Texts(Section):
    """Text to train on and to measure with; a command needs no names of languages."""

    text: Sources = Field(description="Text source of the target language")
    source_text: list[str] = Field(default_factory=list, description="Text of the language that the model knows")
    valid: list[str] = Field(default_factory=list, description="Held-out text of the target language")
    source_valid: list[str] = Field(
        default_factory=list, description="Held-out text of the language that the model knows"
    )

    @model_validator(mode="after")
    def _held_out(self) -> "Texts":
        check_held_out(self.text, self.valid)
        check_held_out(self.source_text, self.source_valid)
        return self

    def sides(self) -> Text:
        """Both languages as a recipe has them."""
        return Text.model_construct(
            target=Language.model_construct(language="target", train=self.text, valid=self.valid),
            source=Language.model_construct(language="source", train=self.source_text, valid=self.source_valid),
        )


class TuneData(Conversations):
    """What a model is tuned on."""

    data: Sources = Field(description="File of conversations: `messages`, or `prompt` and `answer`, a row each")
    preference: list[str] = Field(
        default_factory=list,
        description="File of `prompt`, `chosen`, `rejected`, or `prompt`, `answer`, `label`, for a step after tuning",
    )


class RunOptions(Section):
    """How a command that trains runs, whatever it trains."""

    seed: int = Field(
        default=1,
        ge=0,
        le=LARGEST_SEED,
        description="Of all that is drawn; the same seed gives the same result in the same precision",
    )
    force: bool = Field(default=False, description="Replace the output if it exists")
    dry_run: bool = Field(default=False, description="Say what would run, how much and how long; run nothing")
    as_json: bool = Field(default=False, description="Print the result as JSON")


TEXT = Flags(headings={"": "Text"})
TRAINING_TEXT = Flags(without=frozenset({"valid", "source_valid"}), headings={"": "Text"})
SERVED = Flags({"model": "--original"}, headings={"": "The original, with its own vocabulary"})
COPIES = Flags({"": "copy", "number": "--copies"}, without=frozenset({"apart_from"}), headings={"": "Copies"})
RATES, MEMORY, MEASURING = "Rates and optimizer", "Batches and memory", "Measuring and checkpoints"
HEADINGS = {
    **dict.fromkeys(("learning_rate", "old_rows_learning_rate", "body_learning_rate", "sweep_share"), RATES),
    **dict.fromkeys(("warmup_steps", "schedule", "decay_share", "weight_decay", "adam_epsilon"), RATES),
    **dict.fromkeys(("hidden_rate", "head_rate"), RATES),
    **dict.fromkeys(("batch", "micro_batch", "body_dtype", "gradient_checkpointing", "packing", "max_length"), MEMORY),
    **dict.fromkeys(("save_every", "measure_every", "measure_characters", "keep", "forget_limit"), MEASURING),
    "report_to": MEASURING,
    **dict.fromkeys(("lora", "lora_rank", "lora_rate", "source_share"), "LoRA"),
}
PREFERENCE = Flags(
    {"": "preference"}, without=frozenset({"lora", "max_length"}), headings={"": "Preference step after tuning"}
)
CALIBRATION = Flags(
    {
        "answers": "",
        "answers.batch": "--answer-batch",
        "judge.model": "--judge",
        "judge.server_model": "--judge-model",
        "judge.keep": "--keep",
        "copies": "copy",
        "copies.number": "--copies",
        "tune": "",
        "tune.lora": "",
        "tune.thinking": "--tune-thinking",
    },
    without=frozenset({"copies.apart_from"}),
    headings={
        "answers": "Answers of the original",
        "judge": "Judge",
        "copies": "Copies",
        "tune": "Training",
        "tune.lora": "LoRA",
    },
    off=frozenset({"copies"}),
)
EFFECT = Flags(
    {"target": "--valid", "source": "--source-valid", "tasks": "--task", "limit": "--task-rows"},
    without=frozenset({"max_tokens", "characters", "thinking", "thinking_tokens"}),
    headings={"": "What is measured before and after"},
)


@takes_settings
def distill(
    original: Annotated[str, typer.Option(help=f"The {ORIGINAL}")],
    model: Annotated[Path, typer.Option(help="The same model with the new vocabulary, as lepta init writes it.")],
    output: Output,
    texts: Annotated[Texts, TRAINING_TEXT],
    settings: Annotated[DistillSettings, Flags(headings=HEADINGS)],
    options: Annotated[RunOptions, WRITING],
) -> None:
    """Learn the rows of new tokens from the original model, which reads the same text.

    Nothing but rows changes, unless --lora-rank is given. Several GPUs: accelerate launch --num_processes 8 -m lepta
    distill ... A run that was interrupted goes on when the same command is given again.

    Try: lepta distill --original BASE --model my/initialised --text my.txt --tokens 1000000 --output my/distilled
    """
    check_places([original, str(model)], [output], options.force)
    from lepta.learning import check_chat_share, distill_texts
    from lepta.learning import distill as learn
    from lepta.plan import commands as costs

    sides = texts.sides()
    check_chat_share(settings.chat_share, model)
    with opened(original) as teacher:
        stage = Stage(
            output.name,
            {"model": model, "original": teacher.folder},
            settings.model_dump() | {"seed": options.seed},
            partial(learn, teacher.folder, model, sides, settings, options.seed),
            distill_texts(sides, settings),
            together=True,
            named={"original": original},
        )
        facts = _run(
            stage, output, options, partial(costs.distilling_cost, model, teacher.folder, settings, texts.text)
        )
    result({"output": str(output), **facts}, options.as_json, "trained")


@takes_settings
def pretrain(
    model: Annotated[Path, typer.Option(help="HF folder with the new vocabulary, as lepta init writes it.")],
    output: Output,
    texts: Annotated[Texts, TEXT],
    settings: Annotated[PretrainSettings, Flags(without=frozenset({"darumeru"}), headings=HEADINGS)],
    options: Annotated[RunOptions, WRITING],
    original: Annotated[str | None, typer.Option(help=f"Tells which rows are new: the {ORIGINAL}")] = None,
) -> None:
    """Train embeddings and head on text, the body frozen or not.

    Several GPUs: accelerate launch --num_processes 8 -m lepta pretrain ... A run that was interrupted goes on when the
    same command is given again.

    Try: lepta pretrain --model my/initialised --text my.txt --valid held-out.txt --tokens 1000000 --output my/adapted
    """
    if settings.source_share and not texts.source_text:
        raise LeptaError(
            f"--source-share {settings.source_share:g}: needs --source-text, text of the language the model knows"
        )
    if original is None:
        _check_original(settings)
    check_batch(settings)
    check_places([str(model), original, settings.teacher], [output], options.force)
    from lepta.learning import check_chat_share, check_teacher, sources_of
    from lepta.learning import pretrain as learn
    from lepta.plan import commands as costs
    from lepta.training.distributed import CURVE
    from lepta.vocabulary.source import TOKENIZER_FILES

    check_chat_share(settings.chat_share, model)
    sides = texts.sides()
    inputs, named = {"model": model}, {}
    if original:
        named["original"] = original
        inputs["original"] = locate(original, hub_files=TOKENIZER_FILES)
    with ExitStack() as stack:
        if settings.teacher:
            check_teacher(settings.teacher, original or settings.teacher)
            named["teacher"] = settings.teacher
            inputs["teacher"] = stack.enter_context(opened(settings.teacher)).folder
        old, teacher = inputs.get("original"), inputs.get("teacher")
        stage = Stage(
            output.name,
            inputs,
            settings.model_dump(exclude={"teacher"}) | {"seed": options.seed},
            partial(learn, old, model, sides, settings, options.seed, teacher=teacher),
            nonempty(sources_of(sides, "train", "valid")),
            together=True,
            named=named,
        )
        facts = _run(stage, output, options, partial(costs.pretraining_cost, model, old, settings, texts.text))
    measured = [entry for entry in read_json(output / CURVE)["curve"] if "loss" not in entry]
    facts.pop("held_out_change", None)  # its curve is printed
    result({"output": str(output), **facts, "held_out": measured}, options.as_json, "trained")


def _check_original(settings: PretrainSettings) -> None:
    """LeptaError if the settings tell old rows from new and nothing says which those are."""
    needed = ""
    if settings.keeps_old_rows:
        needed = f"--trains {settings.trains}"
    elif settings.old_rows_learning_rate is not None:
        needed = "--old-rows-learning-rate"
    elif settings.substitution:
        needed = "--substitution"
    if needed:
        raise LeptaError(
            f"{needed}: needs --original, the model before its vocabulary changed: it tells old rows from new"
        )


def _run(stage: Stage, output: Path, options: RunOptions, cost: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run one stage as a pipeline of its own; with `dry_run` print what would run and its cost, and end the command."""
    from lepta.training.distributed import run_stages

    if options.dry_run:
        print_status(Pipeline(output.parent, [stage], remember=False).status(), options.as_json, cost())
        raise typer.Exit
    run_stages(output.parent, [stage], options.force)
    return read_manifest(output)["facts"]


@takes_settings
def repair(
    model: Annotated[Path, typer.Option(help="Folder of the propagated instruct model.")],
    original: Annotated[str, typer.Option(help=f"The instruct model with its own vocabulary: {MODEL_KINDS}")],
    output: Annotated[Path, typer.Option(help="Folder for the steps, states and model.", rich_help_panel=OUTPUT)],
    texts: Annotated[Texts, TEXT],
    settings: Annotated[RepairSettings, Flags(headings=HEADINGS | {"source_share": "Text"})],
    options: Annotated[RunOptions, WRITING],
) -> None:
    """Train a propagated instruct model on text, with its original as the teacher; no conversations are needed.

    The first step brings hidden states back to the original's, the second fits the head's rows of new tokens to what
    the original expects. A run that was interrupted goes on when the same command is given again.

    Try: lepta repair --model my/chat --original CHAT --text my.txt --source-text english.txt --output my/repaired
    """
    if not texts.source_text:
        raise LeptaError("repair: needs --source-text, text of the language the model knows, to keep that as it is")
    check_batch(settings.states)
    check_places([str(model), original])
    from lepta.plan.commands import repairing_cost
    from lepta.repair import repair_steps, run_repair

    with opened(original) as teacher:
        stages = repair_steps(model, teacher.folder, texts.sides(), settings, options.seed, output, original)
        if options.dry_run:
            cost = repairing_cost(model, teacher.folder, settings)
            print_status(Pipeline(output, stages, remember=False).status(), options.as_json, cost)
            return
        facts = run_repair(stages, output, options.force)
    _print_steps({"output": str(output / "model")}, facts, options.as_json, "repair_steps", "trained")


@takes_settings
def tune(
    model: ModelPath,
    files: Annotated[TuneData, Flags(headings={"": "Options"})],
    output: Output,
    settings: Annotated[TuneSettings, Flags({"lora": ""}, headings=HEADINGS)],
    copies: Annotated[CopySettings, COPIES],
    step: Annotated[PreferenceSettings, PREFERENCE],
    options: Annotated[RunOptions, WRITING],
    apart_from: ApartFrom = None,
) -> None:
    """Tune an instruct model on conversations; the loss counts what the assistant says.

    Several GPUs: accelerate launch --num_processes 8 -m lepta tune ... A run that was interrupted goes on when the same
    command is given again.

    Try: lepta tune --model my/chat --data conversations.jsonl --output my/tuned
    """
    check_batch(settings)
    check_places([model], [output], options.force)
    if not copies.text:
        if copies.model_fields_set:
            raise LeptaError("tune: copies need --copy-text, a text source of what is to be repeated")
        copies = CopySettings(number=0)
    from lepta.calibration.copies import copy_examples
    from lepta.plan.commands import tuning_cost
    from lepta.training.tune import Copies, TuneCommand

    copies = copies.model_copy(update={"apart_from": [*(apart_from or []), BENCHMARK]})
    step = step.model_copy(update={"lora": settings.lora, "max_length": settings.max_length})
    added = None
    if copies.number:
        texts = {"copies": copies.text, "apart from": copies.apart_from or []}
        made = partial(copy_examples, copies, texts["apart from"], options.seed)
        added = Copies(made, copies.model_dump(exclude={"text", "apart_from"}), texts)
    command = TuneCommand(settings, options.seed, files.data, added, files.preference, step, files.limit)
    facts = _run(command.stage(model, output.name), output, options, partial(tuning_cost, model, command))
    result({"output": str(output), **facts}, options.as_json, "trained")


@takes_settings
def calibrate(
    model: Annotated[Path, typer.Option(help="Folder of the propagated instruct model.")],
    output: Annotated[Path, typer.Option(help="Folder for answers, grades, examples, model and report.")],
    original: Annotated[ModelOrServer, SERVED],
    settings: Annotated[CalibrateSettings, CALIBRATION],
    effect: Annotated[EffectSettings, EFFECT],
    options: Annotated[RunOptions, WRITING],
    no_judge: Annotated[bool, typer.Option("--no-judge", help="Keep all answers that came to their end.")] = False,
    apart_from: ApartFrom = None,
) -> None:
    """Train a propagated instruct model on graded answers of the original and on copies.

    This is self-calibration. Each step is a folder of the output; a run that was interrupted goes on when the same
    command is given again.

    Try: lepta calibrate --model my/chat --original CHAT --prompts prompts.jsonl --no-judge --output my/calibrated
    """
    if (settings.judge is None) != no_judge:
        raise LeptaError("calibrate: give one of --judge MODEL, --judge-server URL with --judge-model NAME, --no-judge")
    check_batch(settings.tune)
    check_places([str(model), original.model])
    from lepta.calibration.calibrate import Place, calibrate_folder
    from lepta.plan.calibration import calibration_cost_here

    if options.dry_run:
        result(calibration_cost_here(model, settings), options.as_json, "calibration_cost")
        return
    asked_as_here = settings.answers.model_dump(include={"thinking", "thinking_tokens"})
    effect = effect.model_copy(update=asked_as_here)
    apart, place = [*(apart_from or []), BENCHMARK], Place.of(original)
    facts = calibrate_folder(model, place, settings, effect, apart, options.seed, output, options.force)
    places = {"output": str(output / "model"), "report": str(output / "report" / "report.html")}
    _print_steps(places, facts, options.as_json, "calibration_parts", "calibrated")


def _print_steps(
    places: dict[str, str], facts: dict[str, dict[str, Any]], as_json: bool, headings: str, kind: str
) -> None:
    """Print where the result is and what each step found, under its heading in the words of the kind `headings`."""
    if as_json:
        print_json(places | facts)
        return
    result(places, as_json=False)
    for step, found in facts.items():
        say(f"\n{words_of(headings)[step]}")
        result({name: value for name, value in found.items() if value not in (None, {})}, False, kind)
