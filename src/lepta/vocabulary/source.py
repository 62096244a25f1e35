"""Tokenizers in and out: from a Hugging Face folder, any tokenizer file or a hub id, to a folder."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepta.errors import LeptaError
from lepta.locate import locate, read_json
from lepta.vocabulary.families import read_vocabulary
from lepta.vocabulary.gguf_tokenizer import read_gguf_tokenizer
from lepta.vocabulary.sentencepiece_file import is_sentencepiece, read_sentencepiece
from lepta.vocabulary.tiktoken_file import read_tekken, read_tiktoken
from lepta.vocabulary.tokens import Vocabulary

TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class TokenizerSource:
    """All that a model folder says about its tokenizer.

    Attributes
    ----------
    spec : dict
        Contents of `tokenizer.json`.
    config : dict
        Contents of `tokenizer_config.json`, without the chat template.
    chat_template : str or None
        The Jinja template that writes conversations.
    origin : str
        Where it was read from.
    """

    spec: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    origin: str = "tokenizer.json"

    def vocabulary(self) -> Vocabulary:
        """Bytes and ids of this tokenizer; LeptaError if its family is not supported."""
        return read_vocabulary(self.spec, self.origin)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder, as `AutoTokenizer` reads them."""
        spec = json.dumps(self.spec, ensure_ascii=False)  # indent would leave the C encoder
        (folder / "tokenizer.json").write_text(spec, encoding="utf-8")
        config = json.dumps(self.config, ensure_ascii=False, indent=2)
        (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")


def open_tokenizer(source: str | Path) -> TokenizerSource:
    """Read a tokenizer.

    Parameters
    ----------
    source : str or Path
        A Hugging Face folder, a `tokenizer.json`, a SentencePiece `.model`, a tiktoken file, a `tekken.json`, a GGUF
        file, `package:NAME/FILE` or a hub id `OWNER/NAME[@REVISION]`.

    Raises
    ------
    LeptaError
        If there is no such place, or it holds no tokenizer that can be read.
    """
    path = locate(source, hub_files=TOKENIZER_FILES)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".json":
        return _read_json(path)
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(b"GGUF"):
        spec, config, template = read_gguf_tokenizer(path)
        return TokenizerSource(spec, config, template, str(path))
    if TIKTOKEN_LINE.match(head):
        return TokenizerSource(*read_tiktoken(path), None, str(path))
    if is_sentencepiece(head):
        return TokenizerSource(*read_sentencepiece(path), None, str(path))
    raise LeptaError(
        f"{path}: not a tokenizer; expected a folder with tokenizer.json, a tokenizer.json, a SentencePiece .model, "
        "a tiktoken file, tekken.json or a .gguf file"
    )


def _read_json(path: Path) -> TokenizerSource:
    content = read_json(path)
    if "config" in content and "model" not in content and "vocab" in content:
        return TokenizerSource(*read_tekken(path), None, str(path))
    return TokenizerSource(_read_spec(path), {"tokenizer_class": "PreTrainedTokenizerFast"}, None, str(path))


def _read_spec(path: Path) -> dict[str, Any]:
    spec = read_json(path)
    if not isinstance(spec.get("model"), dict) or "vocab" not in spec["model"]:
        raise LeptaError(f"{path}: no tokenizer in it; expected the field model.vocab, as `tokenizers` saves it")
    return spec


def _read_folder(folder: Path) -> TokenizerSource:
    file = folder / "tokenizer.json"
    if not file.is_file():
        others = [name for name in ("tokenizer.model", "tekken.json") if (folder / name).is_file()]
        if not others:
            slow = [name for name in ("vocab.json", "vocab.txt", "merges.txt") if (folder / name).is_file()]
            what = f"only {slow[0]} of a slow tokenizer" if slow else "no tokenizer.json, .model or tekken.json"
            remedy = "save a fast one with AutoTokenizer and save_pretrained()"
            raise LeptaError(f"{folder}: {what} in it; {remedy}")
        return open_tokenizer(folder / others[0])
    config_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = read_json(config_file) if config_file.is_file() else {"tokenizer_class": "PreTrainedTokenizerFast"}
    template = config.pop("chat_template", None)
    if template_file.is_file():
        template = template_file.read_text(encoding="utf-8")
    map_file = folder / "special_tokens_map.json"
    if map_file.is_file():  # older folders keep the roles here; tokenizer_config.json is where they live now
        config = {role: token for role, token in read_json(map_file).items() if role in SPECIAL_ROLES} | config
    return TokenizerSource(_read_spec(file), config, template, str(folder))
