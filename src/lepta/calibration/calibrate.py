"""Self-calibration in stages: the original model answers, a judge grades, examples are chosen, the model is trained.

Each stage is a folder, so that other settings of one do not cost what the stages before it have done.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lepta.calibration.answers import AnswerRow, count_answers, write_answers
from lepta.calibration.copies import copy_examples
from lepta.calibration.effect import measure_effect
from lepta.calibration.judge import GradeRow, count_grades, grade_answers, kept_answers, load_rubric
from lepta.calibration.prompts import check_asked, read_prompts
from lepta.calibration.settings import AnswerSettings, CalibrateSettings, EffectSettings, ModelOrServer
from lepta.calibration.writers import LocalWriter, Sampling, ServerWriter, Writer
from lepta.core.errors import LeptaError
from lepta.core.journal import Journal, read_rows, write_rows
from lepta.core.output import MANIFEST, read_manifest
from lepta.inference.client import check_address
from lepta.models.folder import MODEL_FILES, Checkpoint
from lepta.models.load import fast_dtype, load_model, load_tokenizer, opened
from lepta.stages import CHECKPOINTS, Stage
from lepta.text.locate import locate
from lepta.training.conversations import read_conversations
from lepta.training.distributed import check_steps, processes, run_stages, with_curve
from lepta.training.precision import recorded, recorded_dtype
from lepta.training.tune import tune_folder

ANSWERS, GRADES, EXAMPLES, SHOWN = "answers.jsonl", "grades.jsonl", "examples.jsonl", "shown.jsonl"
FORM_KEPT = {True: "forced", False: "refused", None: "asked for"}  # what became of the form that grades should have
SELF = "original"  # as a judge: the model that answers


@dataclass(frozen=True)
class Place:
    """Where a model is: a source of files, a folder that a stage makes, or its name on an OpenAI-compatible server."""

    model: str | Path
    server: str | None = None

    def __post_init__(self) -> None:
        if self.server:
            check_address(self.server)  # before it gets into a manifest

    @classmethod
    def of(cls, settings: ModelOrServer) -> "Place":
        """Where settings say that it is."""
        return cls((settings.server_model if settings.server else settings.model) or "", settings.server)

    @property
    def inputs(self) -> dict[str, Path]:
        """Its files, as the input of a stage; none if it is on a server."""
        if self.server:
            return {}
        return {"model": self.model if isinstance(self.model, Path) else locate(self.model, hub_files=MODEL_FILES)}

    @property
    def key(self) -> dict[str, str]:
        """What else tells it: what weights a server has cannot be seen from here."""
        return {"server": self.server, "model": str(self.model)} if self.server else {}


@contextmanager
def opened_writer(place: Place, settings: AnswerSettings, work: Path | None = None) -> Iterator[Writer]:
    """A model that answers, wherever it is.

    A model here goes on in the precision that is noted in `work`, the folder of the run's checkpoints.
    """
    if place.server:
        yield ServerWriter(place.server, str(place.model))
        return
    with opened(place.model) as checkpoint:
        choose = partial(fast_dtype, checkpoint.folder)
        if work:
            choose = partial(recorded_dtype, work, choose)
        model, tokenizer = load_model(checkpoint.folder, choose()), load_tokenizer(checkpoint.folder)
        yield LocalWriter(model, tokenizer, settings.context, settings.batch)


def calibration_stages(
    out: Path,
    name_of: Callable[[str], str],
    propagated: Path,
    original: Place,
    settings: CalibrateSettings,
    apart_from: Sequence[str],
    seed: int,
) -> list[Stage]:
    """The stages `answers`, `grades` (if there is a judge), `examples` and `model`, in folders of `out`.

    `original` is the instruct model with its own vocabulary, `propagated` the model to train. Copies are from none of
    the texts `apart_from`, unless the settings say otherwise.
    """
    answers, grades, examples = out / name_of("answers"), out / name_of("grades"), out / name_of("examples")
    apart = list(apart_from)
    if settings.copies.apart_from is not None:
        apart = settings.copies.apart_from
    asked = {**settings.answers.model_dump(), **settings.model_dump(include={"limit", "shown"}), **original.key}
    stages = [
        Stage(
            name_of("answers"),
            original.inputs,
            {"seed": seed, **asked},
            partial(make_answers, original, settings, seed),
            {"prompts": settings.prompts} if settings.prompts else {},
        )
    ]
    made_of = {"answers": answers}
    if settings.judge and settings.prompts:
        made_of["grades"] = grades
        judge = original if settings.judge.model == SELF else Place.of(settings.judge)
        key = {**settings.judge.model_dump(exclude={"keep"}), **judge.key, "rubric": load_rubric().version}
        run = partial(make_grades, answers, judge, settings, seed)
        stages.append(Stage(name_of("grades"), {"answers": answers, **judge.inputs}, {"seed": seed, **key}, run))
    copies = settings.copies
    texts = {"copies": copies.text} if copies.number else {}
    if copies.number and apart:
        texts["apart from"] = apart
    key = {"seed": seed, "keep": settings.judge and settings.judge.keep}
    key |= copies.model_dump(exclude={"text", "apart_from"})
    stages.append(
        Stage(name_of("examples"), made_of, key, partial(make_examples, made_of, settings, apart, seed), texts)
    )
    stages.append(
        Stage(
            name_of("model"),
            {"propagated": propagated, "examples": examples},
            {"seed": seed, **settings.tune.model_dump()},
            partial(make_model, propagated, examples, settings, seed),
            together=True,
        )
    )
    return stages


def make_answers(original: Place, settings: CalibrateSettings, seed: int, folder: Path) -> dict[str, Any]:
    """Have the original model answer the prompts; the first few are put aside, to see later what is written to them.

    Facts: how many prompts were read and why some were left out, how many were answered, and in which precision.
    LeptaError if the server or a file cannot be read (what was answered stays in `folder`), or all prompts are put
    aside.
    """
    rows, counts = Journal(folder / CHECKPOINTS / ANSWERS, AnswerRow), Counter[str]()
    prompts = read_prompts(settings.prompts, settings.limit, counts)
    shown = [{"id": prompt.id, "messages": prompt.messages} for prompt in itertools.islice(prompts, settings.shown)]
    first = list(itertools.islice(prompts, 1))
    check_asked(settings, counts["prompts"], len(first))
    asked = settings.answers
    sampling = Sampling(asked.max_tokens, asked.samples, asked.temperature, seed, asked.budget)
    if settings.prompts:
        with opened_writer(original, asked, folder / CHECKPOINTS) as writer:
            write_answers(itertools.chain(first, prompts), writer, sampling, rows)
    write_rows(folder / SHOWN, shown)
    rows.file.replace(folder / ANSWERS)
    read = {name: counts[name] for name in ("read", "duplicate", "no_question", "prompts")}
    facts = {**read, "shown": len(shown), "answers": count_answers(read_rows(folder / ANSWERS))}
    return facts | recorded(folder / CHECKPOINTS)


def make_grades(answers: Path, judge: Place, settings: CalibrateSettings, seed: int, folder: Path) -> dict[str, Any]:
    """Have a judge grade the answers; facts: how many were graded and how, and how far repeated grades agree."""
    assert settings.judge is not None
    rows = Journal(folder / CHECKPOINTS / GRADES, GradeRow)
    with opened_writer(judge, settings.answers, folder / CHECKPOINTS) as writer:
        grade_answers(read_rows(answers / ANSWERS), writer, settings.judge, seed, rows)
        form = FORM_KEPT[writer.keeps_form]
    rows.file.replace(folder / GRADES)
    counts = count_grades(read_rows(folder / GRADES), settings.judge.keep)
    facts = {"judge": str(judge.model), "rubric": load_rubric().version, "form": form, **counts}
    return facts | recorded(folder / CHECKPOINTS)


def make_examples(
    made_of: dict[str, Path], settings: CalibrateSettings, apart: Sequence[str], seed: int, folder: Path
) -> dict[str, Any]:
    """Choose the answers to learn from, and mix them with copies; LeptaError if nothing is left.

    Facts: how many answers were kept, why others were not, and how many texts were copied.
    """
    copies, copied = copy_examples(settings.copies, apart, seed)
    answers = read_rows(made_of["answers"] / ANSWERS)
    grades = read_rows(made_of["grades"] / GRADES) if "grades" in made_of else None
    chosen = Counter[str]()
    kept = kept_answers(answers, grades, settings.judge.keep if settings.judge else 1, chosen)
    repeated = ({"id": f"copy-{n}", "kind": "copy", "messages": messages} for n, messages in enumerate(copies))
    write_rows(folder / EXAMPLES, itertools.chain(kept, repeated))
    if not chosen["kept"] + len(copies):
        graded = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in chosen.items())
        reason = graded or _none_whole(list(read_rows(made_of["answers"] / ANSWERS)), settings)
        raise LeptaError(f"calibrate: nothing to learn from: no answer was kept ({reason}), no copies")
    counts = {"kept": chosen["kept"]}
    if grades:
        counts |= {"low_grades": chosen["low_grades"], "unreadable_grades": chosen["unreadable_grades"]}
    return {**counts, **copied, "examples": chosen["kept"] + len(copies)}


def _none_whole(answers: Sequence[dict[str, Any]], settings: CalibrateSettings) -> str:
    """Why no answer came to be graded, and what to do."""
    counts = count_answers(answers)
    if counts["unfinished"]:
        return (
            f"{counts['unfinished']} of {counts['prompts']} were cut short at {settings.answers.max_tokens} tokens; "
            "give a larger --max-tokens, in a recipe answers.max_tokens"
        )
    first = next((f", the first: {row['refused']}" for row in answers if "refused" in row), "")
    return f"{counts['empty']} of {counts['prompts']} were empty, {counts['refused']} refused{first}"


def make_model(
    propagated: Path, examples: Path, settings: CalibrateSettings, seed: int, folder: Path
) -> dict[str, Any]:
    """Train the propagated model on the examples, and write it as a plain model folder; facts as for `tune_folder`."""
    source = examples / EXAMPLES
    return with_curve(folder, tune_folder(propagated, read_conversations([str(source)]), settings.tune, seed, folder))


def counts_of(out: Path, name_of: Callable[[str], str]) -> dict[str, Any]:
    """What all stages counted, by stage."""
    folders = {part: out / name_of(part) for part in ("answers", "grades", "examples", "model")}
    return {part: read_manifest(folder)["facts"] for part, folder in folders.items() if (folder / MANIFEST).is_file()}


def calibrate_folder(
    propagated: str | Path,
    original: Place,
    settings: CalibrateSettings,
    effect: EffectSettings,
    apart_from: Sequence[str],
    seed: int,
    output: str | Path,
    force: bool = False,
) -> dict[str, Any]:
    """Calibrate a model folder, from an instruct model with its own vocabulary; resumes an earlier run of the command.

    `output` gets a folder for each stage: `answers`, `grades`, `examples`, `model`, `report`. Copies are from none of
    the texts `apart_from`. The facts are the counts of all stages, and what the report measured before and after.
    LeptaError if the output holds folders of these names that are no stages.
    """
    checkpoint, output = Checkpoint(propagated), Path(output)
    propagated = checkpoint.folder
    stages = calibration_stages(output, str, propagated, original, settings, apart_from, seed)
    models = {"propagated": propagated, "calibrated": output / "model"}
    stages.append(
        Stage(
            "report",
            models | {"answers": output / "answers"} | original.inputs,
            effect.model_dump(exclude={"target", "source"}),
            partial(_report, models, original, output, effect),
            {label: names for label, names in (("target", effect.target), ("source", effect.source)) if names},
        )
    )
    check_steps(output, stages)
    run_stages(output, stages, force)
    if not processes().is_main_process:
        return {}
    return counts_of(output, str) | read_manifest(output / "report")["facts"]


def _report(
    models: dict[str, Path], original: Place, output: Path, settings: EffectSettings, folder: Path
) -> dict[str, Any]:
    shown = [row["messages"] for row in read_rows(output / "answers" / SHOWN)]
    files = original.inputs.get("model")
    found = measure_effect(models, files, shown, settings, {"counts": counts_of(output, str)}, folder)
    measured = ("bits_per_byte", "tasks", "new_token_share")
    report = {}
    for name, model in found.items():
        report[name] = {measure: model[measure] for measure in measured}
    return report
