"""Tokenizers in and out: from a Hugging Face folder, any tokenizer file or a hub id, to a folder."""

import json
import re
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError, explained
from lepta.core.progress import step
from lepta.core.reading import conform, read_json, read_utf8
from lepta.text.locate import locate
from lepta.vocabulary.families import read_vocabulary
from lepta.vocabulary.gguf_tokenizer import read_gguf_fields, read_gguf_tokenizer
from lepta.vocabulary.schema import REMEDY, AddedTokens, IdMap, TokenizerConfig, check_runs, check_spec
from lepta.vocabulary.sentencepiece_file import as_sentencepiece, read_sentencepiece
from lepta.vocabulary.settings import ID_MAP, VocabularySettings
from lepta.vocabulary.tiktoken_file import read_tekken, read_tiktoken
from lepta.vocabulary.tokenizer_json import (
    Config,
    Spec,
    add_special_tokens,
    added_token,
    added_tokens_decoder,
    added_tokens_of,
    config_for_all_versions,
    config_with_ids,
    ids_of,
    start_with,
)
from lepta.vocabulary.tokens import Vocabulary

# Where a folder has its tokens, the first that is there; the other files add roles, chat markers and templates to them.
SENTENCEPIECE_FILE, UNIGRAM_FILE = "tokenizer.model", "spiece.model"
SENTENCEPIECE_FILES = {"BPE": SENTENCEPIECE_FILE, "Unigram": UNIGRAM_FILE}
TOKEN_FILES = ("tokenizer.json", SENTENCEPIECE_FILE, "tekken.json")
CONFIG, ROLES, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# The names are transformers' own; the last is what processors of images were saved with.
CHAT_TEMPLATE, NAMED_TEMPLATES, OLD_TEMPLATE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
TEMPLATE_FILES = [CHAT_TEMPLATE, f"{NAMED_TEMPLATES}/*.jinja", OLD_TEMPLATE]
TOKENIZER_FILES = [*TOKEN_FILES, CONFIG, ROLES, ADDED_TOKENS, ID_MAP, *TEMPLATE_FILES]
GGUF_TEMPLATE, GGUF_HEAD = b"tokenizer.chat_template", 1 << 26  # metadata come first; vocabularies take about 10 MB
SENTENCEPIECE_HEAD = b"\x0a"  # field 1, a message
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, repr=False)
class TokenizerSource:
    """All that a model folder says about its tokenizer."""

    spec: Spec  # contents of `tokenizer.json`
    config: Config = field(default_factory=dict)  # contents of `tokenizer_config.json`, without the chat template
    chat_template: str | dict[str, str] | None = None  # Jinja; or several by name, `default` among them
    origin: str = "tokenizer.json"  # where it was read from
    # What building it found, if it was just built: `script`, the Unicode script of the added tokens; `donors`, how many
    # candidates each gave and how many were taken; `kept_text`, what changed in text that is to stay.
    facts: dict[str, Any] = field(default_factory=dict)
    id_map: dict[str, Any] | None = None  # contents of `id_map.json`: the scenario, and where each old id went
    settings: VocabularySettings | None = None  # what it was built by, if it was just built

    def __repr__(self) -> str:
        model = self.spec["model"]
        return f"TokenizerSource({model.get('type')}, {len(model['vocab']):,} tokens, from {self.origin})"

    def vocabulary(self) -> Vocabulary:
        """Bytes and ids of this tokenizer; LeptaError if its family is not supported."""
        check_spec(self.spec, self.origin)
        reading = step("checking the tokens")
        with reading, explained(self.origin, "not a tokenizer", REMEDY):
            vocabulary = read_vocabulary(self.spec, self.origin)
            check_runs(vocabulary.tokenizer, self.spec, self.origin)
        return vocabulary

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder, as `AutoTokenizer` reads them."""
        spec = json.dumps(self.spec, ensure_ascii=False)  # indent would leave the C encoder
        (folder / "tokenizer.json").write_text(spec, encoding="utf-8")
        config = config_for_all_versions(self.config)
        config |= self._save_sentencepiece(folder)
        (folder / CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")
        templates = self.chat_template or {}
        if isinstance(templates, str):
            templates = {"default": templates}
        for name, template in templates.items():
            file = folder / NAMED_TEMPLATES / f"{name}.jinja"
            if name == "default":
                file = folder / CHAT_TEMPLATE
            file.parent.mkdir(exist_ok=True)
            file.write_text(template, encoding="utf-8")
        if self.id_map is not None:
            (folder / ID_MAP).write_text(json.dumps(self.id_map) + "\n", encoding="utf-8")

    def _save_sentencepiece(self, folder: Path) -> Config:
        """Write the same tokenizer for SentencePiece and llama.cpp's converter; returns what the config says besides.

        The converter takes any `tokenizer.model` for BPE, so a Unigram has the name that T5's has. Nothing is written
        for other families.
        """
        model = as_sentencepiece(self.spec, _roles_in(self.config))
        if model is None:
            return {}
        (folder / SENTENCEPIECE_FILES[self.spec["model"]["type"]]).write_bytes(model)
        if all(token["special"] for token in self.spec.get("added_tokens") or []):
            return {}
        # Here the converter sees which tokens are matched in text as they are written; of the model it does not ask.
        return {"added_tokens_decoder": added_tokens_decoder(self.spec)}


AnyTokenizer = TokenizerSource | str | Path
AnyVocabulary = Vocabulary | AnyTokenizer


def vocabulary_of(source: AnyVocabulary) -> Vocabulary:
    """The vocabulary of a tokenizer that is open already or, as `open_tokenizer` reads it, of any other."""
    return source if isinstance(source, Vocabulary) else open_tokenizer(source).vocabulary()


def open_tokenizer(source: AnyTokenizer) -> TokenizerSource:
    """Read a tokenizer; LeptaError if there is no such place, or it holds no tokenizer that can be read.

    `source` is a Hugging Face folder, a `tokenizer.json`, a SentencePiece `.model`, a tiktoken file, a `tekken.json`, a
    GGUF file, `package:NAME/FILE` or a hub id `OWNER/NAME[@REVISION]`. A tokenizer that is open already is returned.
    """
    if isinstance(source, TokenizerSource):
        return source
    path = locate(source, hub_files=TOKENIZER_FILES)
    with step("reading the tokenizer"):
        if not path.is_dir():
            return _read_file(path)
        with explained(path, "its files do not make a tokenizer", REMEDY):
            return _read_folder(path)


def _read_file(path: Path) -> TokenizerSource:
    with explained(path, "not a whole tokenizer", REMEDY):
        source = _read_any(path)
    check_spec(source.spec, path)
    return source


def _read_any(path: Path) -> TokenizerSource:
    if path.suffix == ".json":
        return _read_json(path)
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(b"GGUF"):
        return TokenizerSource(*read_gguf_tokenizer(path, read_gguf_fields(path)), str(path))
    if TIKTOKEN_LINE.match(head):
        return TokenizerSource(*read_tiktoken(path), origin=str(path))
    if head.startswith(SENTENCEPIECE_HEAD):
        return TokenizerSource(*read_sentencepiece(path), origin=str(path))
    raise LeptaError(
        f"{path}: not a tokenizer; expected a folder with tokenizer.json, a tokenizer.json, a SentencePiece .model, "
        "a tiktoken file, tekken.json or a .gguf file"
    )


def _read_json(path: Path) -> TokenizerSource:
    content = read_json(path)
    if "config" in content and "model" not in content and "vocab" in content:
        return TokenizerSource(*read_tekken(path), origin=str(path))
    if not isinstance(content.get("model"), dict) or "vocab" not in content["model"]:
        raise LeptaError(f"{path}: no tokenizer in it; expected the field model.vocab, as `tokenizers` saves it")
    return TokenizerSource(content, {"tokenizer_class": "PreTrainedTokenizerFast"}, origin=str(path))


def _read_folder(folder: Path) -> TokenizerSource:
    file = next((folder / name for name in TOKEN_FILES if (folder / name).is_file()), None)
    if file is None:
        slow = [name for name in ("vocab.json", "vocab.txt", "merges.txt") if (folder / name).is_file()]
        what = f"only {slow[0]} of a slow tokenizer" if slow else "no tokenizer.json, .model or tekken.json"
        raise LeptaError(f"{folder}: {what} in it; save a fast one with AutoTokenizer and save_pretrained()")
    source = _read_file(file)
    own = _read_optional(folder / CONFIG)
    template = _chat_template(folder, own.pop("chat_template", None))
    roles = _read_optional(folder / ROLES)  # older folders keep the roles here; in the config is where they live now
    # Only as text: transformers takes objects with settings from this file, from the config not.
    config = source.config | _roles_in(roles) | own
    spec = _with_added_tokens(source.spec, folder, roles | config)
    if file.name != TOKEN_FILES[0]:  # the class that the config names would read the other file, in its own way
        spec = _with_start_of_text(spec, config)
        config = config_with_ids(config, spec)
    id_map = None
    if (folder / ID_MAP).is_file():
        id_map = read_json(folder / ID_MAP)
        conform(IdMap, id_map, folder / ID_MAP, "build the vocabulary again")
    return TokenizerSource(spec, config, template, str(folder), id_map=id_map)


def _read_optional(file: Path) -> dict[str, Any]:
    """A file beside the tokenizer, if it is there, with fields that are what they should be."""
    if not file.is_file():
        return {}
    content = read_json(file)
    if file.name == ADDED_TOKENS:
        conform(AddedTokens, {"tokens": content}, file, REMEDY)
    else:
        conform(TokenizerConfig, content, file, REMEDY)
    return content


def _chat_template(folder: Path, given: Any) -> str | dict[str, str] | None:
    """The chat templates of a folder: in files of their own or, if there are none, those that its configs give."""
    templates = {}
    if (folder / CHAT_TEMPLATE).is_file():
        templates["default"] = read_utf8(folder / CHAT_TEMPLATE)
    for file in sorted((folder / NAMED_TEMPLATES).glob("*.jinja")):
        templates[file.stem] = read_utf8(file)
    if not templates:
        given = given or _read_optional(folder / OLD_TEMPLATE).get("chat_template") or []
        if isinstance(given, str):
            return given
        for entry in given:
            templates[entry["name"]] = entry["template"]
    if list(templates) == ["default"]:
        return templates["default"]
    return templates or None


def chat_template_of(place: Path) -> str | dict[str, str] | None:
    """Chat templates of a model folder, None if it has none; of a GGUF file, not parsed, the part that has them."""
    if place.is_dir():
        return _chat_template(place, _read_optional(place / CONFIG).get("chat_template"))
    with place.open("rb") as file:
        head = file.read(GGUF_HEAD)
    return head.decode(errors="ignore") if GGUF_TEMPLATE in head else None


def _with_added_tokens(spec: Spec, folder: Path, settings: Config) -> Spec:
    """Add the tokens that only other files of a folder name, as transformers does; refuse where it would move them."""
    if "added_tokens_decoder" in settings:
        file = folder / CONFIG
        decoder = settings["added_tokens_decoder"]
        tokens = [added_token(int(i), token["content"]) | token for i, token in decoder.items()]
    else:
        file = folder / ADDED_TOKENS
        named = [*map(settings.get, SPECIAL_ROLES), *(settings.get("additional_special_tokens") or [])]
        special = set(map(content_of, named))
        tokens = [added_token(i, token, token in special) for token, i in _read_optional(file).items()]
    known = dict(added_tokens_of(spec))
    missing = sorted((token for token in tokens if token["content"] not in known), key=itemgetter("id"))
    if not missing:
        return spec
    ids = ids_of(spec["model"]["vocab"]) | known
    size = 1 + max(ids.values(), default=-1)
    for token in missing:
        free = ids.setdefault(token["content"], size)
        size += free == size
        if token["id"] != free:
            raise LeptaError(
                f"{file}: token {token['content']!r} has id {token['id']}, expected {free} by the tokenizer; "
                "correct the id, or take the token out if the model has no row for it"
            )
    return add_special_tokens(spec, missing)


def _with_start_of_text(spec: Spec, settings: Config) -> Spec:
    """Put the token for the start of text before each text, or nothing, if the config says which."""
    if "add_bos_token" not in settings:
        return spec
    bos = settings["add_bos_token"] and content_of(settings.get("bos_token"))
    return spec | {"post_processor": start_with(bos or None, dict(added_tokens_of(spec)))}


def _roles_in(config: Config) -> dict[str, str | None]:
    """Role -> text of the special tokens that a config names."""
    return {role: content_of(config[role]) for role in SPECIAL_ROLES if role in config}


def content_of(token: Any) -> str | None:
    """Text of a token as configs name it: a string, or an object with settings."""
    return token["content"] if isinstance(token, dict) else token
