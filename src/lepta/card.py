"""The model card (`README.md`) of every model folder that has a manifest: where it is from, and what was done to it.

What is said of a folder is read from its manifest and those of the folders that it was made from, so one builder serves
recipes and single commands. A card that somebody else wrote is left alone.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lepta.core.errors import LeptaError
from lepta.core.output import CARD, MANIFEST
from lepta.core.reading import read_json
from lepta.version import __version__

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
OURS = "<!-- Written by LEPTA from manifest.json. Delete this line to keep a text of your own here. -->"
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+?)(@[\w./-]+)?")
HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
LANGUAGE_OF_LABEL = re.compile(r"(?:train|valid) ([a-z]{2,3})")
LANGUAGE_OF_SOURCE = re.compile(r"(?:starter|wordfreq):([a-z]{2,3})\b")
DATASET = "dataset:"
PATCH = "patch.json"  # in the folder of a vocabulary patch


@dataclass(frozen=True)
class Kind:
    """A way in which model folders are made, told by what their manifest names."""

    title: str
    marks: tuple[str, ...]  # one of them is an input or a setting
    parents: tuple[str, ...]  # the input that the model itself comes from
    made: str
    limits: str


KINDS = (
    Kind(
        "propagated vocabulary",
        ("instruct",),
        ("instruct",),
        "Learned Embedding Propagation (arXiv 2412.21140): the rows of the new vocabulary, trained on the base model, "
        "mapped into this variant",
        "The body never saw the new tokens: in the new language it may follow instructions less well than the variant "
        "that it was made from.",
    ),
    Kind(
        "patched vocabulary",
        ("patch",),
        ("model",),
        "a vocabulary patch applied to the original model",
        "It is worse than the original wherever the model that the patch was made from is.",
    ),
    Kind(
        "calibrated",
        ("examples",),
        ("propagated",),
        "self-calibration, that is tuned on graded answers of the original variant and on texts to repeat",
        "Tuning on a model's own answers adds no knowledge, and other skills may have suffered.",
    ),
    Kind(
        "distilled vocabulary",
        ("hidden_rate",),
        ("initialised", "model"),
        "rows of new tokens learned from the original model, which reads the same text in its old tokens",
        "Only embeddings learned: it reads the new language with fewer tokens, but not yet as well as the original.",
    ),
    Kind(
        "initialised vocabulary",
        ("tokenizer", "vocabulary"),
        ("base", "model"),
        "each new token starts as the mean of its old pieces",
        "Nothing is trained yet: it reads text with new tokens clearly worse than the original. Train it before use.",
    ),
    Kind(
        "pre-trained",
        ("source_share",),
        ("initialised", "model"),
        "continued pre-training on text",
        "Languages and skills that were not in the training text may have suffered.",
    ),
    Kind(
        "tuned",
        ("dialogues", "data"),
        ("base", "model"),
        "tuned on conversations",
        "Skills that were not in the conversations may have suffered.",
    ),
)
SHOWN_SETTINGS = ("scenario", "method", "trains", "rows", "tokens", "learning_rate", "epochs", "body_delta", "seed")


@dataclass(frozen=True)
class Measure:
    """One measurement of the model that a folder was made from, and of the folder."""

    name: str
    before: float
    after: float
    higher_is_better: bool = False

    @property
    def worse(self) -> bool:
        """Whether the folder does worse."""
        return self.after < self.before if self.higher_is_better else self.after > self.before


@dataclass(frozen=True)
class Step:
    """A folder with a manifest, in the line of what a model was made from."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def kind(self) -> Kind | None:
        """How it was made; None if it is no model, or one that was only converted."""
        marks = {*self.manifest["sources"], *self.manifest["key"]["settings"]}
        return next((kind for kind in KINDS if marks.intersection(kind.marks)), None)

    @property
    def parent(self) -> str | None:
        """What the user called the model that it comes from."""
        if self.kind is None:  # converted from another format; the fact says what the user called that
            return (self.manifest.get("facts") or {}).get("source") or self.manifest["sources"].get("model")
        labels, sources = self.kind.parents, self.manifest["sources"]
        return next((str(sources[label]) for label in labels if label in sources), None)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Label and name of each text source."""
        for label, names in self.manifest["sources"].items():
            if label == "apart from":  # what copies share no words with is not learned from
                continue
            if isinstance(names, list):
                yield from ((label, str(name)) for name in names)
            elif label == "dialogues":
                yield label, str(names)


def step_of(folder: Path) -> Step | None:
    """Read a folder's manifest; None if it has none, or one of another form."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_json(folder / MANIFEST)
    except LeptaError:  # a damaged manifest is told where it counts; a card does without
        return None
    parts = isinstance(manifest.get("sources"), dict) and isinstance(manifest.get("key"), dict)
    return Step(folder, manifest) if parts and isinstance(manifest["key"].get("settings"), dict) else None


def line_of(folder: Path) -> list[Step]:
    """The folder and the models that it comes from, the oldest first, as far as they have manifests and are there."""
    line: list[Step] = []
    step = step_of(folder)
    while step and all(step.folder.resolve() != known.folder.resolve() for known in line):
        line.insert(0, step)
        step = step_of(Path(step.parent)) if step.parent else None
    return line


def all_steps(folder: Path) -> list[Step]:
    """`line_of`, and all other folders with a manifest that went into it (vocabulary, adapted base), each once."""
    found: dict[Path, Step] = {}
    waiting = [folder]
    while waiting:
        place = waiting.pop(0)
        step = step_of(place)
        if step is None or place.resolve() in found:
            continue
        found[place.resolve()] = step
        names = [name for name in step.manifest["sources"].values() if isinstance(name, str)]
        waiting += [Path(name) for name in names if Path(name).is_dir()]
    return list(found.values())


def hub_id_of(source: str) -> str | None:
    """The hub id that a model's name or place says, if it does."""
    if cached := HUB_CACHE.search(source):
        return f"{cached[1]}/{cached[2]}"
    match = HUB_ID.fullmatch(source)
    return match[1] if match and not Path(source).exists() else None


def front_matter(folder: Path) -> dict[str, Any]:
    """What a folder's card says to machines; nothing where there is no card, or no YAML in it."""
    card = folder / CARD
    match = FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    try:
        facts = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:  # a card is written by hand, and only what another card says depends on it
        facts = None
    return facts if isinstance(facts, dict) else {}


@dataclass
class Origin:
    """What a card says of where a model comes from."""

    base: str | None = None  # hub id of the nearest model that is on the hub
    name: str = "a model"  # what the first model is called
    licence: str = "unknown"
    languages: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)


def origin_of(folder: Path) -> Origin:
    """Follow a model back to where it comes from."""
    origin, line = Origin(), line_of(folder)
    first = line[0].parent if line else None
    known = front_matter(Path(first)) if first and Path(first).is_dir() else {}
    for step in line[:-1]:
        known = front_matter(step.folder) or known
    if first:
        origin.name = hub_id_of(first) or (first if first.startswith("package:") else Path(first).name)
    nearest = [hub_id_of(step.parent) for step in reversed(line) if step.parent]
    named = known.get("base_model")
    named = named[0] if isinstance(named, list) and named else named
    origin.base = next((name for name in nearest if name), named if isinstance(named, str) else None)
    origin.licence = str(known.get("license", "unknown"))
    spoken = known.get("language") or []
    steps = all_steps(folder)
    origin.languages = _unique([*_languages(steps), *([spoken] if isinstance(spoken, str) else map(str, spoken))])
    texts = _unique([text for step in steps for _, text in step.texts()])
    origin.datasets = [re.split("[@?]", text.removeprefix(DATASET))[0] for text in texts if text.startswith(DATASET)]
    return origin


def _languages(steps: Sequence[Step]) -> list[str]:
    found = []
    for step in steps:
        for label, text in step.texts():
            match = LANGUAGE_OF_LABEL.fullmatch(label) or LANGUAGE_OF_SOURCE.match(text)
            found += [match[1]] if match else []
    return found


def _unique(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


def is_model(folder: Path) -> bool:
    """Whether somebody could publish a folder as a model."""
    weights = any(folder.glob("*.safetensors")) and not (folder / PATCH).is_file()
    return weights and (folder / "config.json").is_file()


def write_card(folder: Path, measured: Sequence[Measure] = ()) -> None:
    """Write the card of a model folder with a manifest and what was measured since; a card by others stays."""
    card = folder / CARD
    if not is_model(folder) or (card.is_file() and OURS not in card.read_text(encoding="utf-8", errors="replace")):
        return
    step = step_of(folder)
    if step and step.kind:
        card.write_text(build_card(step, step.kind, measured), encoding="utf-8")


def build_card(step: Step, kind: Kind, measured: Sequence[Measure] = ()) -> str:
    """The card of a folder, as text; the same manifests and measurements give the same text."""
    origin, config = origin_of(step.folder), read_json(step.folder / "config.json")
    lines = [
        "---",
        yaml.safe_dump(metadata(origin, config), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        OURS,
        "",
        f"# {origin.name}, {kind.title}",
        "",
        f"Made by LEPTA {__version__}: {kind.made}.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        "```",
        "",
        *_history(step.folder),
        *_table_of_texts(step.folder, origin),
        *_table_of_measures(step, measured),
        "## What it is worse at",
        "",
        *_worse(kind, measured, step.manifest.get("facts") or {}),
        "",
        "Content hashes of all inputs, library versions and settings are in `manifest.json`.",
        "",
    ]
    return "\n".join(lines)


def metadata(origin: Origin, config: dict[str, Any]) -> dict[str, Any]:
    """What the hub reads of a card (huggingface.co/docs/hub/model-cards)."""
    facts: dict[str, Any] = {"license": origin.licence}
    if origin.languages:
        facts["language"] = origin.languages
    facts["library_name"] = "transformers"
    facts["pipeline_tag"] = "image-text-to-text" if "vision_config" in config else "text-generation"
    if origin.base:
        facts |= {"base_model": origin.base, "base_model_relation": "finetune"}
    if origin.datasets:
        facts["datasets"] = origin.datasets
    return facts | {"tags": ["lepta", "vocabulary-adaptation"]}


def patch_metadata(original: Path) -> str:
    """What the hub reads of the card of a vocabulary patch for an original model, as YAML."""
    known = front_matter(original)
    facts: dict[str, Any] = {"license": str(known.get("license", "unknown"))}
    if base := hub_id_of(str(original)):
        facts |= {"base_model": base, "base_model_relation": "adapter"}
    facts |= {"library_name": "lepta", "tags": ["lepta", "vocabulary-adaptation"]}
    return str(yaml.safe_dump(facts, sort_keys=False))


def _history(folder: Path) -> list[str]:
    """What was done, in order: this folder and what it comes from."""
    lines = ["## How it was made", ""]
    for number, step in enumerate(line_of(folder), 1):
        kind, settings = step.kind, step.manifest["key"]["settings"]
        shown = [f"{key} {_short(settings[key])}" for key in SHOWN_SETTINGS if settings.get(key) is not None]
        words = kind.made if kind else "read from another format"
        lines.append(f"{number}. {words}" + (f" ({', '.join(shown)})" if shown else ""))
    return [*lines, ""]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " or ".join(map(_short, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table_of_texts(folder: Path, origin: Origin) -> list[str]:
    rows = [f"| model | `{origin.name}` | {origin.licence} |"]
    for step in all_steps(folder):
        for label, text in step.texts():
            rows.append(f"| {label} | `{_public(text)}` | {text_licence(text)} |")
    return ["| input | source | licence |", "|---|---|---|", *_unique(rows), ""]


def _public(source: str) -> str:
    """A text source without the folders of the machine that it lies on."""
    place = Path(source)
    return place.name if place.is_absolute() or place.exists() else source


def text_licence(source: str) -> str:
    """Licence of a text source, where it is known."""
    if source.startswith("starter:"):
        return "Apache-2.0 (written for LEPTA)"
    if source.startswith("wordfreq:"):
        return "statistics: CC BY-SA 4.0 (wordfreq)"
    return "see there" if source.startswith(DATASET) else "the user's"


def _table_of_measures(step: Step, measured: Sequence[Measure]) -> list[str]:
    """Measurements against the original; and what a map predicts of tokens that it did not see."""
    lines = []
    if measured:
        lines += ["## Measured", "", "| | original | this model |", "|---|---|---|"]
        lines += [f"| {one.name} | {one.before:.3f} | {one.after:.3f} |" for one in measured]
        lines.append("")
    maps = (step.manifest.get("facts") or {}).get("maps") or {}
    if maps:
        lines += ["| matrix | map | rank | error without map | error with map |", "|---|---|---|---|---|"]
        for name, fit in maps.items():
            errors = f"{fit['residual_swap']:.4f} | {fit['residual']:.4f}"
            lines.append(f"| `{name}` | {fit['method']} | {fit['rank']} | {errors} |")
        lines.append("")
    return lines


def _worse(kind: Kind, measured: Sequence[Measure], facts: dict[str, Any]) -> list[str]:
    lines = [f"- {kind.limits}"]
    lines += [f"- {one.name}: {one.after:.3f}, the original {one.before:.3f}." for one in measured if one.worse]
    lines += [f"- {warning[0].upper()}{warning[1:]}." for warning in facts.get("warnings") or []]
    return lines
