"""The model card (`README.md`) of every model folder that has a manifest: where it is from, and what was done to it.

What is said of a folder is read from its manifest and those of the folders that it was made from, so one builder serves
recipes and single commands. A card that somebody else wrote is left alone.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lepta.core.errors import LeptaError, explained
from lepta.core.output import CARD, MANIFEST, read_manifest
from lepta.core.reading import is_there, read_json
from lepta.core.settings import as_list, nonempty
from lepta.core.shipped import shipped_data
from lepta.core.templates import render
from lepta.text.locate import HUB_ID, PACKAGE, locate, short_name
from lepta.text.sources import DATASET, STARTER, WORDFREQ
from lepta.version import __version__

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
CHAT_TEMPLATE = "chat_template.jinja"  # as transformers calls it
OURS = "<!-- Written by LEPTA from manifest.json. Delete this line to keep a text of your own here. -->"
HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
LANGUAGE_OF_LABEL = re.compile(r"(?:train|valid) ([a-z]{2,3})")
LANGUAGE_OF_SOURCE = re.compile(r"(?:starter|wordfreq):([a-z]{2,3})\b")
# In the header of a GGUF file, where fields of the model's own come first: type 8 is text, after its length in bytes.
# The reader of GGUF files is in a room above this one, and a card needs a few such fields alone.
GGUF_TEXT = rb"%s\x08\0\0\0(.{8})"
HEADER = 1 << 16  # bytes to look for them in
# Where the model is on the hub that a file was converted from; else the one that it is a fine-tuned version of.
GGUF_ORIGINS = ("general.source.repo_url", "general.repo_url", "general.base_model.0.repo_url")
HUB = "https://huggingface.co/"
LICENCE = re.compile(r"[\w.+-]{1,64}")  # an identifier such as apache-2.0
PATCH = "patch.json"  # in the folder of a vocabulary patch
# Facts: bits per byte of the result and of the original.
BESIDE_ORIGINAL, PASSAGES_BESIDE_ORIGINAL = "beside_original", "passages_beside_original"
READ = {BESIDE_ORIGINAL: "held-out text", PASSAGES_BESIDE_ORIGINAL: "passages of the training text that were put aside"}
SHOWN_SETTINGS = [
    "scenario", "method", "trains", "rows", "head_only", "lora_rank", "teacher_loss", "chat_share", "tokens",
    "learning_rate", "epochs", "body_delta", "seed",
]  # fmt: skip
# Defaults that say nothing
UNSAID = {"head_only": False, "lora_rank": 0, "teacher_loss": "likelihoods", "chat_share": 0.0}


@dataclass(frozen=True)
class Kind:
    """A way in which model folders are made; see `data/cards/kinds.yaml`."""

    title: str
    step: str  # what such a step is called beside its texts
    marks: list[str]
    parents: list[str]
    made: str
    limits: str
    with_lora: str = ""  # said after `made` if the step changed the body with a `lora_rank`


KINDS = [Kind(**row) for row in shipped_data("cards/kinds.yaml")]


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
        before, after = round(self.before, 3), round(self.after, 3)  # as the card shows them
        return after < before if self.higher_is_better else after > before


@dataclass(frozen=True)
class Step:
    """A folder with a manifest, in the line of what a model was made from."""

    folder: Path
    settings: dict[str, Any]
    sources: dict[str, Any]  # label -> what the user called an input, or a list of text sources
    facts: dict[str, Any]

    @property
    def kind(self) -> Kind | None:
        """How it was made; None if it is no model, or one that was only converted."""
        marks = self.sources.keys() | self.settings.keys()
        return next((kind for kind in KINDS if marks.intersection(kind.marks)), None)

    @property
    def made(self) -> str:
        """What was done, in words."""
        if self.kind is None:
            return "converted from another format"
        made = self.kind.made
        if self.settings.get("lora_rank"):
            made += self.kind.with_lora
        if self.facts.get("kept_step") == 0:
            made += "; its weights were not kept, those before it were"
        return made

    @property
    def name(self) -> str:
        """What to call it beside its texts."""
        if self.kind is None or not is_model(self.folder):
            return "vocabulary"
        return self.kind.step

    @property
    def parent(self) -> str | None:
        """What the user called the model that it comes from."""
        if self.kind is None:  # converted from another format; the fact says what the user called that
            return self.facts.get("source") or self.sources.get("model")
        return next((str(self.sources[label]) for label in self.kind.parents if label in self.sources), None)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Label and name of each text source."""
        for label, names in self.sources.items():
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
        manifest = read_manifest(folder)
    except LeptaError:  # a damaged manifest is told where it counts; a card does without
        return None
    return Step(folder, manifest["key"]["settings"], manifest["sources"], manifest["facts"])


def line_of(folder: Path) -> list[Step]:
    """The folder and the models that it comes from, the oldest first, as far as they have manifests and are there."""
    line: dict[Path, Step] = {}
    step = step_of(folder)
    while step and step.folder.resolve() not in line:
        line[step.folder.resolve()] = step
        if not step.parent:
            break
        step = step_of(Path(step.parent))
    return list(reversed(line.values()))


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
        for name in step.sources.values():
            if isinstance(name, str) and is_there(name) and Path(name).is_dir():
                waiting.append(Path(name))
    return list(found.values())


def hub_id_of(source: str) -> str | None:
    """The hub id that a model's name or place says, if it does."""
    if cached := HUB_CACHE.search(source):
        return f"{cached[1]}/{cached[2]}"
    match = HUB_ID.fullmatch(source)
    return match["repo"] if match and not is_there(source) else None


def front_matter(folder: Path) -> dict[str, Any]:
    """What a folder's card says to machines; nothing where there is no card, or no YAML in it."""
    card, facts = folder / CARD, None
    if card.is_file() and (match := FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))):
        with suppress(yaml.YAMLError):  # a card is written by hand, and only what another card says depends on it
            facts = yaml.safe_load(match[1])
    return facts if isinstance(facts, dict) else {}


@dataclass
class Origin:
    """What a card says of where a model comes from."""

    base: str | None = None  # hub id of the nearest model that is on the hub
    name: str = "a model"  # what the first model is called
    source: str = "a model"  # the same, with the package that it comes from
    licence: str = "unknown"
    languages: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)


def origin_of(folder: Path) -> Origin:
    """Follow a model back to where it comes from."""
    origin, line = Origin(), line_of(folder)
    first = line[0].parent if line else None
    if first:
        origin.name = hub_id_of(first) or short_name(first)
        origin.source = hub_id_of(first) or Path(first).name
        if first.startswith(PACKAGE):
            origin.source = first
    known, header = _known_of(line, first), _gguf_header(first or "")
    origin.base = _nearest_on_hub(line, known, header)
    licence = LICENCE.fullmatch(_gguf_text(header, "general.license"))
    origin.licence = str(known.get("license") or (licence and licence[0]) or "unknown")
    spoken = as_list(known.get("language") or [])
    languages, datasets = [], []
    for step in all_steps(folder):
        for label, text in step.texts():
            if match := LANGUAGE_OF_LABEL.fullmatch(label) or LANGUAGE_OF_SOURCE.match(text):
                languages.append(match[1])
            if text.startswith(DATASET):
                datasets.append(text.removeprefix(DATASET))
    origin.languages = unique([*languages, *map(str, spoken)])
    origin.datasets = [re.split("[@?]", name)[0] for name in unique(datasets)]
    return origin


def _known_of(line: Sequence[Step], first: str | None) -> dict[str, Any]:
    """What the nearest card before a folder's own says to machines."""
    cards = [step.folder for step in line[:-1]]
    if first and is_there(first) and Path(first).is_dir():
        cards.insert(0, Path(first))
    return next(filter(None, map(front_matter, reversed(cards))), {})


def _nearest_on_hub(line: Sequence[Step], known: dict[str, Any], header: bytes) -> str | None:
    """Hub id of the nearest model that a folder, a card or the header of a GGUF file names."""
    nearest = [hub_id_of(step.parent) for step in reversed(line) if step.parent]
    named = as_list(known.get("base_model") or [])
    nearest += [name for name in named[:1] if isinstance(name, str)]
    nearest += [hub_id_of(_gguf_text(header, name).removeprefix(HUB)) for name in GGUF_ORIGINS]
    return next(filter(None, nearest), None)


def _gguf_header(source: str) -> bytes:
    """The beginning of a GGUF file or one in a package; nothing of other models, or if it is not here."""
    if not source.endswith(".gguf"):
        return b""
    try:
        with locate(source, hub_files=[]).open("rb") as file:
            return file.read(HEADER)
    except (LeptaError, OSError):  # the model may be gone since; a card does without
        return b""


def _gguf_text(header: bytes, name: str) -> str:
    """A field of a GGUF file that is text; empty if there is none."""
    found = re.search(GGUF_TEXT % re.escape(name.encode()), header, re.DOTALL)
    if not found:
        return ""
    return header[found.end() : found.end() + int.from_bytes(found[1], "little")].decode(errors="replace")


def unique(values: Sequence[str]) -> list[str]:
    """Each value once, in their order."""
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
        with explained(folder / MANIFEST, "its facts are not as LEPTA writes them", "make the folder again"):
            text = build_card(step, step.kind, measured)
        card.write_text(text, encoding="utf-8")


def build_card(step: Step, kind: Kind, measured: Sequence[Measure]) -> str:
    """The card of a folder, as text; the same manifests and measurements give the same text."""
    origin, line = origin_of(step.folder), line_of(step.folder)
    texts, warnings = dict[tuple[str, str, str], list[str]](), list[str]()
    for one in all_steps(step.folder):
        for label, text in one.texts():
            texts.setdefault((label, _public(text), text_licence(text)), []).append(one.name)
        warnings += one.facts.get("warnings") or []
        if absent := one.facts.get("tokens_absent"):
            warnings.append(
                f"of {one.facts['new_rows']:,} new tokens, {absent:,} are in no text that their rows were learned from"
            )
    adapted = next((one.sources["adapted"] for one in line if "adapted" in one.sources), None)
    of_rows = line_of(Path(str(adapted))) if adapted else []
    view = {
        "metadata": metadata(origin, read_json(step.folder / "config.json")),
        "mark": OURS,
        "origin": origin,
        "made": step.made,
        "kind": kind,
        "chat": (step.folder / CHAT_TEMPLATE).is_file(),
        "version": __version__,
        "steps": list(map(_history, line)),
        "of_rows": list(map(_history, of_rows)),
        "rows_kind": of_rows[-1].kind if of_rows else None,
        "texts": [(", ".join(unique(steps)), *text) for text, steps in texts.items()],
        "measures": measured or _beside_original(line[-1], of_rows),
        "maps": step.facts.get("maps") or {},
        "warnings": unique(warnings),
    }
    return render("data/cards/card.md.j2", view)


def _beside_original(step: Step, of_rows: Sequence[Step]) -> list[Measure]:
    """What was measured while a model, or the base model that its rows come from, was made."""
    of_base = ""
    if not READ.keys() & step.facts.keys() and of_rows:
        step, of_base = of_rows[-1], "the base model that its rows come from: "
    measures = []
    for fact, text in READ.items():
        if fact in step.facts:
            after, before = step.facts[fact]
            measures.append(Measure(f"{of_base}{text}, bits per byte (lower is better)", before, after))
    return measures


def metadata(origin: Origin, config: dict[str, Any]) -> str:
    """What the hub reads of a card (huggingface.co/docs/hub/model-cards), as YAML."""
    facts = {
        "license": origin.licence,
        "language": origin.languages,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": origin.base,
        "base_model_relation": origin.base and "finetune",
        "datasets": origin.datasets,
    }
    if "vision_config" in config:
        facts["pipeline_tag"] = "image-text-to-text"
    return _as_yaml(facts)


def patch_card(original: Path, called: str) -> str:
    """The card of a vocabulary patch of an original model, a folder; `called` is what the user gave for it."""
    licence, base = str(front_matter(original).get("license", "unknown")), hub_id_of(called)
    facts = {"license": licence, "base_model": base, "library_name": "lepta", "base_model_relation": base and "adapter"}
    name = base or short_name(called)
    if not base and step_of(original):
        name = origin_of(original).name
    view = {"metadata": _as_yaml(facts), "name": name, "original": base or "ORIGINAL", "version": __version__}
    return render("data/cards/patch.md.j2", view)


def _as_yaml(facts: dict[str, Any]) -> str:
    known = nonempty(facts) | {"tags": ["lepta", "vocabulary-adaptation"]}
    return str(yaml.safe_dump(known, sort_keys=False, allow_unicode=True))


def _history(step: Step) -> tuple[str, list[str]]:
    """What was done, and the settings that tell how."""
    shown = []
    for key in SHOWN_SETTINGS:
        value = step.settings.get(key)
        if value not in (None, [], UNSAID.get(key)):
            shown.append(f"{key} {_short(value)}")
    facts = step.facts
    if "old_rows" in facts:
        shown.insert(0, f"{facts['old_rows']:,} rows before, {facts['new_rows']:,} after")
    vocabulary = step.sources.get("vocabulary") or step.sources.get("tokenizer")
    built = step_of(Path(vocabulary)) if isinstance(vocabulary, str) else None
    if built and (scenario := built.settings.get("scenario")):
        shown.insert(0, f"vocabulary: {scenario}")
    if change := facts.get("held_out_change"):
        shown.append(f"held-out text {change[0]:.3f} -> {change[1]:.3f} bits per byte")
    if bits := facts.get("held_out_bits_per_byte"):  # of distillation, by step
        first, last = next(iter(bits.values())), bits[facts["kept"]]
        shown.append(f"passages put aside {first:.3f} -> {last:.3f} bits per byte")
    return step.made, shown


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " or ".join(map(_short, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _public(source: str) -> str:
    """A text source without the folders of the machine that it lies on."""
    place = Path(source)
    return place.name if place.is_absolute() or place.exists() else source


def text_licence(source: str) -> str:
    """Licence of a text source, where it is known."""
    if source.startswith(STARTER):
        return "Apache-2.0 (written for LEPTA)"
    if source.startswith(WORDFREQ):
        return "statistics: CC BY-SA 4.0 (wordfreq)"
    return "see there" if source.startswith(DATASET) else "the user's"
