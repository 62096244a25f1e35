"""What a user may write in a recipe: one YAML file from texts and models to adapted models and a report.

Paths are relative to the folder that `lepta` is run in, as on the command line. Text sources are described in
`lepta.corpus`, model sources in `lepta.locate`.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lepta.embeddings.propagate import Method
from lepta.errors import LeptaError
from lepta.vocabulary.scenarios import KeepBy, Scenario

Trains = Literal["new-rows", "embeddings", "embeddings+lora", "full"]
BodyDtype = Literal["auto", "float32", "bfloat16", "float16", "4bit"]
# A name becomes a folder: it may not be "." or "..".
NAME = r"^[\w-][\w.-]*$"
Sources = Annotated[list[str], Field(min_length=1)]


def _as_list(value: Any) -> Any:
    """One value stands for a list of one."""
    return value if isinstance(value, list) else [value]


class Section(BaseModel):
    """A part of the recipe; unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tune(Section):
    """Make the variant here, by tuning the base model on conversations."""

    dialogues: str = Field(description="JSONL file with one conversation a line, field `messages`")
    learning_rate: float = Field(2e-5, gt=0)
    batch: int = Field(4, ge=1, description="Conversations per step")
    limit: int | None = Field(None, ge=1, description="Use only the first so many conversations")


class Variant(Section):
    """One instruct variant of the base model: a model that exists, or one tuned here."""

    model: str | None = Field(None, description="Folder, GGUF file, package:NAME/FILE or hub id")
    tune: Tune | None = None

    @model_validator(mode="after")
    def _one_of(self) -> "Variant":
        if (self.model is None) == (self.tune is None):
            raise ValueError("give either `model` (a variant that exists) or `tune` (make one here)")
        return self


class Language(Section):
    """Text of one language."""

    language: str = Field(description="Name shown in reports, for example ru")
    train: list[str] = Field(default_factory=list, description="Text sources to train on")
    valid: Sources = Field(description="Held-out text sources, for measuring")


class Text(Section):
    """Text of the language that the model is to learn, and of the one it knows."""

    target: Language
    source: Language


class VocabularySettings(Section):
    """The new vocabulary (paper 2.4.1)."""

    scenario: Scenario = Field(
        "extended",
        description="extended: keep the vocabulary, add tokens; optimized: keep its most useful part, add tokens; "
        "bpe, unigram: a new vocabulary",
    )
    add: int | None = Field(None, ge=1, description="Number of new tokens; or give `size`")
    size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description="Size of the whole new vocabulary, or give `add`; auto: as many new tokens as make text cheapest",
    )
    keep: int | None = Field(
        None, ge=1, description="optimized: tokens to keep, special ones not counted; default: half"
    )
    keep_by: KeepBy = Field("frequency", description="optimized: keep the most used in the corpus, or the lowest ranks")
    corpus: Sources = Field(description="Text sources and wordfreq:LANGUAGE")
    script: str = Field("auto", description="Unicode script of the new tokens; auto: the one most letters are in")
    pad_to: int | None = Field(None, ge=1, description="Pad rows to this multiple; default: as the source was padded")

    @model_validator(mode="after")
    def _one_number(self) -> "VocabularySettings":
        if (self.add is None) == (self.size is None):
            raise ValueError("give either `add` (number of new tokens) or `size` (of the whole vocabulary)")
        return self


class Lora(Section):
    """Low-rank changes of the body's linear layers, merged into them when training ends."""

    rank: int = Field(32, ge=1)
    alpha: int = Field(32, ge=1, description="The change is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Sources | Literal["all-linear"] = Field(
        "all-linear", description="Names of linear layers, such as q_proj; all-linear: every one but the head"
    )


class PretrainSettings(Section):
    """Continued pre-training (paper 2.1.3); defaults are the paper's where it names them."""

    trains: Trains = Field(
        "embeddings",
        description="embeddings: input and output embeddings (paper); new-rows: only those of new tokens; "
        "embeddings+lora: low-rank changes of the body too; full: everything",
    )
    tokens: int = Field(ge=1, description="Tokens to train on, in all")
    block: int = Field(1024, ge=8, description="Block length in tokens")
    documents_apart: bool = Field(False, description="A token sees its own document only, not what else the block has")
    batch: int = Field(256, ge=1, description="Blocks per step, over all processes")
    micro_batch: int | None = Field(
        None, ge=1, description="Blocks that one process holds at once; default: its whole share of the batch"
    )
    learning_rate: Annotated[list[Annotated[float, Field(gt=0)]], BeforeValidator(_as_list), Field(min_length=1)] = (
        Field([1e-4], description="Peak rate; of several, each is tried on `sweep_share` of the tokens")
    )
    sweep_share: float = Field(0.2, gt=0, le=1, description="Share of the tokens that each learning rate is tried on")
    old_rows_learning_rate: float | None = Field(None, gt=0, description="For rows of old tokens; default: the same")
    body_learning_rate: float | None = Field(None, gt=0, description="For LoRA or the whole body; default: the same")
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.1, ge=0)
    adam_epsilon: float = Field(1e-8, gt=0, description="The paper's runs used 1e-5")
    lora: Lora = Field(default_factory=Lora, description="Used by embeddings+lora")
    body_dtype: BodyDtype = Field(
        "auto",
        description="Precision of the frozen body; auto: bfloat16 on a GPU that has it, float32 on a CPU. "
        "What trains is float32 in any case",
    )
    gradient_checkpointing: bool = Field(False, description="Compute activations twice instead of keeping them")
    source_share: float = Field(0.0, ge=0, lt=1, description="Share of tokens in the source language")
    save_every: int = Field(100, ge=1, description="Steps between checkpoints")
    measure_every: int = Field(100, ge=1, description="Steps between measurements on held-out text")
    measure_characters: int = Field(4000, ge=100, description="Characters of held-out text for those")
    keep: Literal["last", "best"] = Field("last", description="best: the weights with the best score on held-out text")
    forget_limit: float | None = Field(
        None, gt=0, description="Stop when the source language is so many bits per byte worse than at the start"
    )
    report_to: list[str] = Field(default_factory=list, description="Trackers: tensorboard, wandb, trackio, mlflow, ...")

    @model_validator(mode="after")
    def _whole_body(self) -> "PretrainSettings":
        if self.trains == "full" and self.body_dtype == "4bit":
            raise ValueError("body_dtype: 4bit weights cannot train; give trains: embeddings+lora")
        return self


class PropagateSettings(Section):
    """Learned Embedding Propagation (paper 2.2)."""

    method: Literal[Method, "auto"] = "conversion"
    body_delta: float = Field(
        1.0, description="If pre-training changed the body too: add that change so many times to the variant's body"
    )


class Behaviour(Section):
    """A style that can be counted: answers open as the reference answers do, up to and including a mark."""

    dialogues: str = Field(description="JSONL file with held-out conversations")
    mark: str = Field(":", min_length=1)
    prompts: int = Field(24, ge=1, description="Use the first so many conversations")
    max_tokens: int = Field(24, ge=1, description="Longest answer in tokens")


class EvaluateSettings(Section):
    """What is measured, and on how much text."""

    characters: int = Field(10_000, ge=100, description="Characters of held-out text for bits per byte, each language")
    window: int = Field(1500, ge=100, description="Characters that the model sees at once")
    speed_characters: int = Field(800, ge=100, description="Characters read and written in the speed test")
    speed_repeats: int = Field(3, ge=1)
    prompts: list[str] = Field(default_factory=list, description="Openings that base and adapted model continue")
    max_tokens: int = Field(40, ge=1, description="Longest continuation in tokens of the new vocabulary")
    behaviour: Behaviour | None = None


class Recipe(Section):
    """One adaptation from beginning to end."""

    name: str = Field(pattern=NAME)
    output: Path = Field(description="Folder for everything that the recipe makes")
    seed: int = 1
    base: str = Field(description="Foundation model: folder, GGUF file, package:NAME/FILE or hub id")
    variants: dict[Annotated[str, Field(pattern=NAME)], Variant] = Field(default_factory=dict)
    text: Text
    vocabulary: VocabularySettings
    pretrain: Annotated[list[PretrainSettings], BeforeValidator(_as_list), Field(min_length=1)]
    propagate: PropagateSettings = Field(default_factory=PropagateSettings)
    evaluate: EvaluateSettings = Field(default_factory=EvaluateSettings)

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        if not self.text.target.train:
            raise ValueError("text.target.train: at least one text source is needed")
        replaced = self.vocabulary.scenario in ("bpe", "unigram")
        for stage in self.pretrain:
            if replaced and (stage.trains == "new-rows" or stage.old_rows_learning_rate):
                field = "trains: new-rows" if stage.trains == "new-rows" else "old_rows_learning_rate"
                raise ValueError(
                    f"pretrain.{field} needs old rows to keep apart: vocabulary.scenario extended or optimized"
                )
            if stage.source_share and not self.text.source.train:
                raise ValueError("pretrain.source_share is above 0: text.source.train needs at least one text source")
        return self


def read_recipe(path: str | Path) -> Recipe:
    """Read and validate a recipe.

    Raises
    ------
    LeptaError
        Naming the file and field, what was expected, and for an unknown key the nearest one that exists.
    """
    path = Path(path)
    if not path.is_file():
        raise LeptaError(f"{path}: no such recipe; recipes/demo.yaml is one to start from")
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise LeptaError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if not isinstance(content, dict):
        raise LeptaError(f"{path}: expected keys and values at the top level, as in recipes/demo.yaml")
    return validated(Recipe, content, str(path))


SectionType = TypeVar("SectionType", bound=Section)


def validated(kind: type[SectionType], content: dict[str, Any], where: str) -> SectionType:
    """Check values; LeptaError names the field, what was expected, and for an unknown key the nearest one that exists.

    Parameters
    ----------
    kind : type of Section
    content : dict
    where : str
        What the message begins with.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        reasons = "; ".join(_explain(reason, content, kind) for reason in error.errors()[:3])
        raise LeptaError(f"{where}: {reasons}") from error


def _explain(error: Any, content: Any, kind: type[Section]) -> str:
    field = ".".join(_as_written(error["loc"], content))
    if error["type"] == "extra_forbidden":
        known = list(_section_at(error["loc"][:-1], kind).model_fields)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{field}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{field}: missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{field}: {message}" if field else message


def _as_written(location: tuple[int | str, ...], content: Any) -> Iterator[str]:
    """Parts of a location, without the index of a value that was written alone instead of in a list."""
    for part in location:
        if isinstance(part, int) and not isinstance(content, list):
            continue
        yield str(part)
        within = isinstance(content, dict) or (isinstance(content, list) and isinstance(part, int))
        content = content[part] if within and (isinstance(part, int) or part in content) else None


def _section_at(location: tuple[int | str, ...], section: type[Section]) -> type[Section]:
    """Follow field names down to the section they lie in; other parts of a location are keys of a dict or list."""
    parts = iter(location)
    for name in parts:
        annotation = section.model_fields[str(name)].annotation
        section = next(part for part in _types_in(annotation) if issubclass(part, Section))
        if get_origin(annotation) in (dict, list):
            next(parts, None)  # the key in the dict, a name of the user's, or the index in the list
    return section


def _types_in(annotation: Any) -> list[type]:
    """The classes in an annotation such as `dict[str, Variant]` or `Tune | None`."""
    inner = [part for argument in get_args(annotation) for part in _types_in(argument)]
    return inner or ([annotation] if isinstance(annotation, type) else [])
