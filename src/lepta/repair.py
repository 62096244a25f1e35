"""Repair of a propagated variant: training on text, with the variant that has its own vocabulary as the teacher.

Try: lepta repair --help
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError
from lepta.core.output import read_manifest
from lepta.core.settings import nonempty
from lepta.distillation.settings import DistillSettings, RepairSettings
from lepta.learning import check_chat_share, check_distill, distill, distill_texts, pretrain, sources_of
from lepta.models.folder import AnyModel, Checkpoint
from lepta.stages import Stage
from lepta.text.settings import Text
from lepta.training.distributed import check_steps, processes, run_stages
from lepta.vocabulary.change import new_ids

REPAIRS = {"repairs": True}  # in the settings of both stages, which tells cards what they are


def repair_folder(
    propagated: str | Path,
    original: str | Path,
    text: Text,
    settings: RepairSettings,
    seed: int,
    output: str | Path,
    force: bool = False,
) -> dict[str, Any]:
    """Repair a propagated variant, a model folder, from the folder of its original; resumes an earlier run.

    `output` gets the folders `states` (after the first step) and `model`, the result. Gives what both steps found.
    """
    model, teacher = Checkpoint(propagated), Checkpoint(original)  # a GGUF file is a folder as long as these live
    return run_repair(repair_steps(model, teacher, text, settings, seed, output), Path(output), force)


def repair_steps(
    propagated: AnyModel,
    original: AnyModel,
    text: Text,
    settings: RepairSettings,
    seed: int,
    output: str | Path,
    called: str | None = None,
) -> list[Stage]:
    """The stages of `repair_folder`, once models and places are found to fit; `called` is the original's name."""
    model, teacher, output = Checkpoint.of(propagated), Checkpoint.of(original), Path(output)
    name = called or teacher.folder
    check_head(settings, model.output_name is None)
    check_chat_share(settings.chat_share, model.folder)
    if model.width != teacher.width:
        raise LeptaError(
            f"{name}: rows have {teacher.width} numbers, in {model.folder} {model.width}; expected the "
            "variant that this one was made from"
        )
    if not len(new_ids(teacher.folder, model.folder)):
        raise LeptaError(
            f"{model.folder}: has no token that {name} lacks, so there is nothing to repair; expected a "
            "propagated variant, and the variant that it was made from"
        )
    stages = repair_stages(output, ("states", "model"), model.folder, teacher.folder, text, settings, seed, called)
    check_steps(output, stages)
    return stages


def run_repair(stages: list[Stage], output: Path, force: bool) -> dict[str, Any]:
    """Run `repair_steps`; gives what each found."""
    run_stages(output, stages, force)
    if not processes().is_main_process:
        return {}
    return {stage.name: read_manifest(output / stage.name)["facts"] for stage in stages}


def check_head(settings: RepairSettings, tied: bool) -> None:
    """LeptaError if a head is to learn alone and one matrix serves both ends (`tied`)."""
    if tied and settings.head_tokens:
        raise LeptaError(
            "repair.head_tokens: the model has one matrix for both ends, so its head cannot learn alone; expected 0, "
            "or a model with a head of its own (`untie` in distillation)"
        )


def repair_stages(
    out: Path,
    names: tuple[str, str],
    propagated: Path,
    original: Path,
    text: Text,
    settings: RepairSettings,
    seed: int,
    called: str | None = None,
) -> list[Stage]:
    """The stages that repair a variant, in folders of `out`: hidden states, then the head; the second has the result.

    `original` is the variant with its own vocabulary. Where the head does not learn (`head_tokens` 0), the first step
    gets the second name.
    """
    states, head = settings.states, settings.head
    inputs = {"model": propagated, "original": original}
    named = {"original": called} if called else {}
    first = names[0] if head else names[1]
    stages = [
        Stage(
            first,
            inputs,
            states.model_dump(exclude={"teacher"}) | {"seed": seed} | REPAIRS,
            partial(_learn_states, original, propagated, text, settings, seed),
            nonempty(sources_of(text, "train", "valid")),
            together=True,
            named=named,
        )
    ]
    if head:
        stages.append(
            Stage(
                names[1],
                inputs | {"model": out / first},
                head.model_dump() | {"seed": seed} | REPAIRS,
                partial(_learn_head, original, out / first, text, head, seed),
                distill_texts(text, head),
                together=True,
                named=named,
            )
        )
    return stages


def _learn_states(
    original: Path, propagated: Path, text: Text, settings: RepairSettings, seed: int, folder: Path
) -> dict[str, Any]:
    """The first step. What the second would refuse is found before it: it takes half an hour."""
    with _named_as_here():
        if settings.head:
            check_distill(original, propagated, text, settings.head, seed)
        return pretrain(original, propagated, text, settings.states, seed, folder, teacher=original)


def _learn_head(
    original: Path, start: Path, text: Text, settings: DistillSettings, seed: int, folder: Path
) -> dict[str, Any]:
    with _named_as_here():
        return distill(original, start, text, settings, seed, folder)


@contextmanager
def _named_as_here() -> Iterator[None]:
    """Let errors of pre-training and distillation name the settings of the repair."""
    try:
        yield
    except LeptaError as error:
        said = str(error).replace("distill.tokens", "repair.head_tokens")
        for other in ("distill", "pretrain"):
            said = said.replace(f"{other}.", "repair.").replace(f"{other}:", "repair:")
        raise LeptaError(said) from error
