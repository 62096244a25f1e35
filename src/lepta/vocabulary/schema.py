"""What is read of tokenizer files, as pydantic models: the gate that all of them pass before anything uses them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import Base64Bytes, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from tokenizers import Tokenizer

from lepta.core.errors import explained
from lepta.core.reading import conform
from lepta.vocabulary.tokenizer_json import ids_of

MOST_TOKENS = 1 << 22  # ids: everything is a list by id, and the largest vocabularies known have 262,144
REMEDY = "download or convert it again"
PROBE = ["Привет, the 123\r\n", "日本 👨‍👩‍👧 x" + " " * 40 + "!"]
LETTERS = "aп7 "  # of the classes that a pattern may name
RUN = 40  # characters: a regular expression that backtracks without end shows it on a run of its own letters

TokenId = Annotated[int, Field(strict=True, ge=0, lt=MOST_TOKENS)]
Flag = Annotated[bool, Field(strict=True)]
Merge = str | tuple[str, str]


class Token(BaseModel):
    """A special token as configs name it."""

    content: str = Field(min_length=1)
    special: Flag = False


class AddedToken(Token):
    """A token that is matched in text as it is written."""

    id: TokenId


class Part(BaseModel):
    """A normalizer, pre-tokenizer, post-processor or decoder; what else is in it `tokenizers` judges."""

    model_config = ConfigDict(extra="allow")
    type: str


class Vocab(BaseModel):
    """A BPE or Unigram model: tokens by name, or a list of tokens with scores."""

    type: str | None = None
    vocab: dict[str, TokenId] | Annotated[list[tuple[str, float]], Field(max_length=MOST_TOKENS)]
    merges: list[Merge] | None = None
    unk_token: str | None = None
    unk_id: TokenId | None = None
    byte_fallback: Flag | None = None


class TokenizerFile(BaseModel):
    """A `tokenizer.json`."""

    model: Vocab
    added_tokens: list[AddedToken] | None = None
    normalizer: Part | None = None
    pre_tokenizer: Part | None = None
    post_processor: Part | None = None
    decoder: Part | None = None

    @model_validator(mode="after")
    def _special_tokens_exist(self) -> "TokenizerFile":
        if not self.post_processor:
            return self
        names = set(ids_of(self.model.vocab))
        names |= {token.content for token in self.added_tokens or []}
        if unknown := sorted(_named_by(self.post_processor.model_dump()) - names):
            raise ValueError(f"post_processor: names the token {unknown[0]!r}, which the vocabulary does not have")
        return self


def _named_by(processor: dict[str, Any]) -> set[str]:
    """Special tokens that a post-processor puts around texts."""
    match processor.get("type"):
        case "Sequence":
            return set().union(*map(_named_by, processor["processors"]))
        case "TemplateProcessing":
            return set().union(*(entry["tokens"] for entry in processor["special_tokens"].values()))
        case "BertProcessing" | "RobertaProcessing":
            return {processor["sep"][0], processor["cls"][0]}
    return set()


NamedToken = Annotated[Token, BeforeValidator(lambda value: {"content": value} if isinstance(value, str) else value)]


class NamedTemplate(BaseModel):
    """One of several chat templates."""

    name: str = Field(pattern=r"^[^/\\\x00]{1,100}$")  # it becomes the name of a file
    template: str


class TokenizerConfig(BaseModel):
    """`tokenizer_config.json` or `special_tokens_map.json`."""

    bos_token: NamedToken | None = None
    eos_token: NamedToken | None = None
    unk_token: NamedToken | None = None
    pad_token: NamedToken | None = None
    additional_special_tokens: list[NamedToken] | None = None
    added_tokens_decoder: dict[Annotated[int, Field(ge=0, lt=MOST_TOKENS)], Token] | None = None
    add_bos_token: Flag | None = None
    chat_template: str | list[NamedTemplate] | None = None


class AddedTokens(BaseModel):
    """`added_tokens.json`: token -> id."""

    tokens: dict[Annotated[str, Field(min_length=1)], TokenId]


class IdMap(BaseModel):
    """`id_map.json` of LEPTA: where each id of the original vocabulary went."""

    scenario: str
    most_changed: Annotated[float, Field(ge=0, le=1)] = 0.0  # of scenario `replaced`
    ids: list[TokenId | None]


class GgufTokenizer(BaseModel):
    """The fields `tokenizer.ggml.*` of a GGUF file. An id beyond the last token is as good as none."""

    model_config = ConfigDict(strict=True)

    tokens: Annotated[list[str], Field(min_length=1, max_length=MOST_TOKENS)]
    token_type: list[int]
    pre: str = ""
    scores: list[float] = []
    merges: list[Annotated[str, Field(pattern="^[^ ]+ [^ ]+$")]] = []
    bos_token_id: int = 0
    eos_token_id: int = 0
    unknown_token_id: int = 0
    padding_token_id: int = 0
    add_bos_token: Flag = False
    add_eos_token: Flag = False
    add_space_prefix: Flag = False


class TekkenToken(BaseModel):
    """A token of text, by its rank."""

    rank: TokenId
    token_bytes: Base64Bytes


class TekkenSpecial(BaseModel):
    """A special token."""

    rank: TokenId
    token_str: str = Field(min_length=1)


class TekkenSettings(BaseModel):
    """How many tokens count, and how text is cut."""

    pattern: str
    default_vocab_size: TokenId
    default_num_special_tokens: TokenId


class Tekken(BaseModel):
    """Mistral's `tekken.json`."""

    config: TekkenSettings
    vocab: list[TekkenToken]
    special_tokens: list[TekkenSpecial] | None = None


def check_spec(spec: Any, where: object) -> None:
    """LeptaError unless the fields of a `tokenizer.json` are what they should be."""
    with explained(where, "not a tokenizer", REMEDY):
        conform(TokenizerFile, spec, where, REMEDY)


def check_runs(tokenizer: Tokenizer, spec: dict[str, Any], where: object) -> None:
    """LeptaError unless a tokenizer turns text into ids, also text that is hard for its regular expressions."""
    letters = sorted({*LETTERS}.union(*_patterns(spec)))
    runs = [letter * RUN for letter in letters]
    texts = [*PROBE, "".join(runs), *(f"{run}!" for run in runs)]  # of a pattern that ends with "$" nothing may follow
    with explained(where, "cannot turn text into tokens", REMEDY), _quiet():
        tokenizer.encode_batch(texts)


def _patterns(part: Any) -> Iterator[str]:
    """All regular expressions in a `tokenizer.json`, the vocabulary left out."""
    if isinstance(part, dict):
        if isinstance(pattern := part.get("Regex"), str):
            yield pattern
        for name, value in part.items():
            if name != "vocab":
                yield from _patterns(value)
    elif isinstance(part, list) and part and isinstance(part[0], dict):
        for value in part:
            yield from _patterns(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Rust prints when it panics off standard error: the error that follows says the same."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
