"""What a user must know beside a plan's numbers: what training will refuse, what is missing, what is not counted."""

from collections.abc import Iterator, Sequence

from lepta.core.errors import LeptaError
from lepta.distillation.settings import DistillSettings
from lepta.plan.distillation import CHARACTERS_PER_TOKEN
from lepta.plan.outline import Outline
from lepta.plan.text import is_absent
from lepta.plan.vocabulary import AUTO_ADDED, MADE
from lepta.plan.words import words_in
from lepta.recipe import Recipe
from lepta.training.settings import PretrainSettings, TuneSettings, few_steps, split_batch

# Weights below which training reaches less of a GPU than it is taken to, and a share that a small model may reach
SMALL, SMALL_MFU = 1_000_000_000, 0.1
MANY_PASSES = 16  # of a text, after which a model hardly learns from it (Muennighoff et al. 2023, arXiv 2305.16264)
SPARE = 1.5  # characters per token are not known exactly


def notes_on(outline: Outline, number: int) -> list[str]:
    """One line for each, for `number` processes."""
    recipe, context = outline.recipe, outline.before.context
    notes = [*_refused(recipe, number), *_absent(recipe), *_left_out(recipe)]
    if outline.wanted.how.startswith("size: auto"):
        notes.append(f"vocabulary.size: auto is counted as {AUTO_ADDED:,} new tokens until the vocabulary is made")
    if recipe.vocabulary.scenario == "optimized":
        notes.append("optimized: special tokens are kept beside vocabulary.keep, so a few more rows are old")
    learned = list(recipe.pretrain)
    if recipe.repair:
        learned.append(recipe.repair.states)
    for stage in learned:
        if stage.block > context:
            notes.append(f"block {stage.block:,} is longer than the model's context of {context:,} tokens")
    return [*notes, *few_words(outline), *short_runs(recipe)]


def slow_gpus(outline: Outline, mfu: float) -> Iterator[str]:
    """A small model leaves a large GPU waiting."""
    weights = outline.after.weights
    if (outline.stages or outline.recipe.distill) and weights < SMALL and mfu > SMALL_MFU:
        yield (
            f"a model of {weights / 1e6:,.0f} M weights is too small to keep a GPU busy: training on one may take "
            f"several times as long as is said here; --mfu {SMALL_MFU:g} tells"
        )


def few_words(outline: Outline) -> Iterator[str]:
    """Text on this machine that cannot teach as many tokens as are to be added."""
    settings, wanted = outline.recipe.vocabulary, outline.wanted
    adds = settings.scenario in ("extended", "replaced", "optimized") and settings.size != "auto"
    if not adds or settings.donor or wanted.how == MADE:
        return
    asked = settings.add or wanted.size - wanted.first_new
    try:
        words = words_in(settings.corpus, settings.script)
    except LeptaError as error:
        yield f"the vocabulary cannot be made: {error}"
        return
    if words and words.whole and asked > words.most:
        yield (
            f"vocabulary: {asked:,} new tokens cannot be learned from its corpus, whose words in {words.script} give "
            f"{words.most:,} at most; give more text (vocabulary.corpus) or ask for fewer"
        )


def beyond_text(
    distill: DistillSettings | None, stages: Sequence[PretrainSettings], characters: int | None
) -> Iterator[str]:
    """What to say of budgets far beyond the text of the target language, of so many characters (None: unknown)."""
    if not characters:
        return
    held = characters / CHARACTERS_PER_TOKEN
    if distill and distill.tokens - distill.source_tokens > SPARE * held:
        yield (
            f"distill: {distill.tokens:,} tokens, but the text has about {held:,.0f}; it is read once, so this takes "
            "less time than is said here"
        )
    wanted = sum(stage.tokens * (1 - stage.source_share) for stage in stages)
    if wanted > MANY_PASSES * held:
        yield (
            f"pretrain: its tokens go {wanted / held:,.0f} times through the text, which has about {held:,.0f}; more "
            f"than {MANY_PASSES} passes teach next to nothing, so give more text or fewer tokens"
        )


def short_runs(recipe: Recipe) -> Iterator[str]:
    """What distillation and pre-training may say of too few tokens."""
    runs = [("pretrain", stage) for stage in recipe.pretrain]
    if recipe.distill:
        yield from _few_passages(recipe.distill, "distill", "tokens")
    if recipe.repair:
        runs.append(("repair", recipe.repair.states))
        if recipe.repair.head:
            yield from _few_passages(recipe.repair.head, "repair", "head_tokens")
    for name, stage in runs:
        if note := few_steps(stage):
            yield f"{name}: {note}"


def _few_passages(settings: DistillSettings, section: str, field: str) -> Iterator[str]:
    """What distillation may say of too few tokens, in a field; passages are shorter where documents are."""
    tokens, whole = settings.tokens - settings.source_tokens, settings.passage / CHARACTERS_PER_TOKEN
    if tokens < whole * (settings.batch - 1):
        yield (
            f"{section}.{field}: {tokens:,} tokens of the target text fill about {tokens / whole:.1f} passages of "
            f"{settings.passage} characters, and fewer than {section}.batch, {settings.batch}, are refused; give more "
            f"tokens, shorter passages ({section}.passage) or a smaller batch"
        )


def _refused(recipe: Recipe, number: int) -> Iterator[str]:
    """What training says of batches that so many processes cannot share."""
    runs: dict[str, PretrainSettings | TuneSettings] = {}
    for place, stage in enumerate(recipe.pretrain):
        runs[f"pretrain.{place}" if len(recipe.pretrain) > 1 else "pretrain"] = stage
    for name, variant in recipe.variants.items():
        if variant.tune:
            runs[f"variants.{name}.tune"] = variant.tune
    if recipe.repair:
        runs["repair"] = recipe.repair.states
    if recipe.calibrate:
        runs["calibrate.tune"] = recipe.calibrate.tune
    for name, run in runs.items():
        try:
            split_batch(run.batch, run.micro_batch, number)
        except LeptaError as error:
            yield f"training will refuse {name}.{error}"


def _absent(recipe: Recipe) -> Iterator[str]:
    """The files that a recipe names and that are not on this machine, with the fields that name them."""
    named = {
        "text.target.train": recipe.text.target.train,
        "text.target.valid": recipe.text.target.valid,
        "text.source.train": recipe.text.source.train,
        "text.source.valid": recipe.text.source.valid,
        "vocabulary.corpus": recipe.vocabulary.corpus,
    }
    for name, variant in recipe.variants.items():
        if variant.tune:
            named[f"variants.{name}.tune.dialogues"] = [variant.tune.dialogues]
    if (calibrate := recipe.calibrate) and recipe.variants:
        named["calibrate.prompts"] = calibrate.prompts
        named["calibrate.copies.text"] = calibrate.copies.text
        named["calibrate.copies.apart_from"] = calibrate.copies.apart_from or []
    if behaviour := recipe.evaluate.behaviour:
        named["evaluate.behaviour.dialogues"] = [behaviour.dialogues]
    absent: dict[str, list[str]] = {}
    for field, sources in named.items():
        for source in filter(is_absent, sources):
            absent.setdefault(source, []).append(field)
    if absent:
        files = "; ".join(f"{source} ({', '.join(fields)})" for source, fields in absent.items())
        yield f"not on this machine: {files}; the plan does without them, `lepta adapt` will not"


def _left_out(recipe: Recipe) -> Iterator[str]:
    """Parts of the cost that are not counted."""
    for name, variant in recipe.variants.items():
        if variant.tune:
            yield f"variants.{name}.tune: hours, memory and checkpoints of tuning are not in this plan"
    if recipe.distill:
        yield "distill: checkpoints of distillation are not in this plan"
    if recipe.repair:
        yield "repair: checkpoints of its training are not in this plan"
    if (calibrate := recipe.calibrate) and recipe.variants:
        what = "answers, hours, " if any(map(is_absent, calibrate.prompts)) else ""
        what += "the judge's hours, " if calibrate.judge else ""
        yield f"calibrate: {what}memory and checkpoints of training are not in this plan"
