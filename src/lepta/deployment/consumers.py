"""What each program that runs models makes of a folder: one function for each, from that program's own rules.

transformers, `tokenizers` and sentencepiece are asked here and now. The others are judged by what their code says; what
they did when they were tried stands in docs/deployment.md.
"""

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from lepta.core.errors import LeptaError
from lepta.core.reading import read_json
from lepta.models.folder import Checkpoint, says_tied
from lepta.models.versions import for_all_versions
from lepta.vocabulary.check import check_bytes, check_config, check_dense, check_llama_cpp, check_round_trip
from lepta.vocabulary.families import ByteLevelBPE, SentencePieceUnigram
from lepta.vocabulary.llama_cpp import PLACE, patch, recognise, rule_of
from lepta.vocabulary.loading import OTHER_TEXT, first_difference, load_tokenizer, sample_text
from lepta.vocabulary.sentencepiece_file import adds_space
from lepta.vocabulary.source import CONFIG, SENTENCEPIECE_FILE, TokenizerSource
from lepta.vocabulary.tokens import Kind, Vocabulary

Status = Literal["works", "limits", "step", "fails", "unknown"]

PADDED_TO = 64  # rows of vLLM and SGLang (VocabParallelEmbedding), which divide among 2, 4 or 8 GPUs then
LORA_ROWS = 257_024  # vLLM refuses LoRA on a model with more (vllm/lora/layers, LogitsProcessorWithLoRA)
DRAFT_DIFFERENCE = 128  # ids that a draft may have fewer or more in llama.cpp (common/speculative.cpp)
V4_ROPE_THETA = 10_000  # what transformers 4 takes where the config does not say
V5_CLASSES = ("TokenizersBackend", "PythonBackend", "SentencePieceBackend", "MistralCommonBackend")
# Causal models that CTranslate2 4.8 has a converter for.
CTRANSLATE2 = (
    *("codegen", "falcon", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text", "gpt2", "gpt_bigcode"),
    *("gpt_neox", "gptj", "llama", "mistral", "mpt", "opt", "phi", "phi3", "qwen2", "qwen3", "bloom"),
)
PRINTABLE = [chr(code) for code in range(0x21, 0x7F)]


@dataclass(frozen=True)
class Verdict:
    """What a consumer makes of a model folder."""

    status: Status
    reason: str
    step: str = ""  # what the user has to do
    lines: str = ""  # to paste, as they are
    place: str = ""  # where they go
    tried: bool = False  # here and now; otherwise by the consumer's rules


@dataclass(frozen=True)
class Deployed:
    """A model folder, and what all verdicts are made from. `draft` is the tokenizer of a draft model."""

    checkpoint: Checkpoint
    tokenizer: TokenizerSource
    draft: TokenizerSource | None = None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """That of the tokenizer."""
        return self.tokenizer.vocabulary()

    @cached_property
    def texts(self) -> list[str]:
        """Texts in many scripts, and in those of the vocabulary's own tokens."""
        return [*OTHER_TEXT, *sample_text(self.vocabulary)]

    @property
    def folder(self) -> Path:
        """The model folder."""
        return self.checkpoint.folder

    @property
    def text_config(self) -> dict[str, Any]:
        """The config of the language model, which multimodal ones have inside."""
        inner = self.checkpoint.config.get("text_config")
        return inner if isinstance(inner, dict) else self.checkpoint.config

    @property
    def inner(self) -> str:
        """Where in `config.json` that is."""
        return "config.json" if self.text_config is self.checkpoint.config else "config.json, text_config"

    @cached_property
    def fault(self) -> str | None:
        """What no consumer of the weights can go on with."""
        rows, said = self.checkpoint.rows, self.text_config.get("vocab_size")
        if rows < self.vocabulary.size:
            return f"{rows:,} rows for {self.vocabulary.size:,} ids"
        if said is not None and said != rows:
            return f"config.json says vocab_size {said}, the matrix has {rows:,} rows"
        if says_tied(self.checkpoint.config) is False and self.checkpoint.stored_output is None:
            return "config.json says that the head is a matrix of its own, and none is stored"
        return None

    @cached_property
    def head_is_dropped(self) -> bool:
        """Whether the config ties a head that is stored and differs: some programs follow the config and drop it."""
        return bool(says_tied(self.checkpoint.config)) and not self.checkpoint.tied


def transformers_5(model: Deployed) -> Verdict:
    """The folder as `AutoTokenizer` loads it, against its own file."""
    try:
        loaded = load_tokenizer(model.folder, forgiving=False)
    except LeptaError as error:
        if isinstance(error.__cause__, ImportError):
            step = f"pip install {(error.__cause__.name or '').replace('_', '-')}".rstrip()
            return Verdict("step", f"AutoTokenizer lacks a package here: {error.__cause__}", step, tried=True)
        return Verdict("fails", _brief(error, model), tried=True)
    return _read_by(loaded, model)


def _read_by(loaded: Any, model: Deployed) -> Verdict:
    """Whether a loaded tokenizer gives the ids of its file, and the config means the same special tokens."""
    same, other = first_difference(loaded, model.vocabulary, model.texts)
    if other is not None:
        reason = f"{type(loaded).__name__} gives other ids than tokenizer.json (first at {other!r})"
        return Verdict("fails", reason, "use a vocabulary of the model's own family", tried=True)
    config = check_config(model.tokenizer, model.vocabulary)
    if not config.passed:
        return Verdict("step", config.evidence.partition("; ")[2], "correct config.json", tried=True)
    return Verdict("works", f"{same} of {len(model.texts)} texts as tokenizer.json says", tried=True)


def _brief(error: LeptaError, model: Deployed) -> str:
    return " ".join(str(error).replace(f"{model.folder}: ", "").split())


def transformers_4(model: Deployed) -> Verdict:
    """What version 4 writes otherwise: `rope_theta` beside the sizes of layers, `torch_dtype`, special tokens."""
    config = read_json(model.folder / CONFIG) if (model.folder / CONFIG).is_file() else {}
    if config.get("tokenizer_class") in V5_CLASSES:
        lines = '"tokenizer_class": "PreTrainedTokenizerFast",'
        reason = f"it has no tokenizer class {config['tokenizer_class']}"
        return Verdict("step", reason, f"edit {CONFIG}", lines, CONFIG)
    if isinstance(config.get("extra_special_tokens"), list):
        reason = "it expects extra_special_tokens as an object, not a list"
        lines = f'"additional_special_tokens": {json.dumps(config["extra_special_tokens"], ensure_ascii=False)},'
        return Verdict("step", reason, f"rename extra_special_tokens in {CONFIG}", lines, CONFIG)
    missing = keys_of_version_4(model.text_config)
    rope = [key for key in missing if key != "torch_dtype"]
    if rope:
        reason = f"reads other rotary embeddings, without a message: no {', '.join(rope)} for it"
        lines = "\n".join(f"{json.dumps(key)}: {json.dumps(value)}," for key, value in missing.items())
        return Verdict("step", reason, f"add the lines below to {model.inner}", lines, model.inner)
    if missing:
        return Verdict("works", "in float32 before 4.56: no torch_dtype in config.json")
    return Verdict("works", "finds rope and dtype where it looks for them")


def keys_of_version_4(config: dict[str, Any]) -> dict[str, Any]:
    """What LEPTA would add to a config for transformers 4; the default that it takes anyway is left out."""
    added = {}
    for key, value in for_all_versions(config).items():
        if config.get(key) != value and key != "dtype" and not key.endswith("_config"):
            added[key] = value
    if added.get("rope_theta") == V4_ROPE_THETA:
        del added["rope_theta"]
    return added


def tokenizers_python(model: Deployed) -> Verdict:
    """The library `tokenizers`, which runs the file itself."""
    for check in (check_round_trip(model.vocabulary, None, model.texts), check_bytes(model.vocabulary, None)):
        if not check.passed:
            return Verdict("limits", f"{check.name}: {check.evidence}", tried=True)
    return Verdict("works", f"{len(model.texts)} texts come back as they were", tried=True)


def tokenizers_javascript(model: Deployed) -> Verdict:
    """`@huggingface/tokenizers` and transformers.js: as in Python, but Unigram has no byte fallback there."""
    if not isinstance(model.vocabulary, SentencePieceUnigram):
        return Verdict("works", f"{model.vocabulary.family} as in Python")
    bytes_of_text = set(model.vocabulary.ids_of(Kind.BYTE))
    unknown = sum(not bytes_of_text.isdisjoint(ids) for ids in model.vocabulary.encode(model.texts))
    if not unknown:
        return Verdict("works", f"{model.vocabulary.family} as in Python")
    known = model.vocabulary.ids_by_bytes(Kind.TEXT)
    lost = [letter for letter in PRINTABLE if letter.encode() not in known]
    reason = f"no byte fallback there: <unk> in {unknown} of {len(model.texts)} texts"
    if lost:
        return Verdict("fails", f"{reason}; {''.join(lost[:8])} are never read", "use scenario extended or bpe")
    return Verdict("limits", f"{reason}, at rare characters")


def llama_cpp(model: Deployed) -> Verdict:
    """llama.cpp's converter: a rule for byte-level BPE, `tokenizer.model` for SentencePiece."""
    if model.head_is_dropped:
        return _untie()
    if isinstance(model.vocabulary, ByteLevelBPE):
        return _by_rule(model)
    if isinstance(model.vocabulary, SentencePieceUnigram):
        reason = "its converter takes Unigram for T5 alone; characters without a piece are lost"
        return Verdict("fails", reason, "use lepta export gguf, or scenario extended, optimized or bpe")
    file = model.folder / SENTENCEPIECE_FILE
    if not file.is_file():
        reason = f"no {SENTENCEPIECE_FILE}: converted without scores, it reads other ids"
        if adds_space(model.tokenizer.spec) is None:
            return Verdict("fails", reason)
        return Verdict("step", reason, "use lepta export gguf, which makes it")
    if adds_space(model.tokenizer.spec) is False and not str(model.text_config.get("model_type")).startswith("gemma"):
        reason = "it puts a space before text, since its converter does not say that this tokenizer puts none"
        return Verdict("step", reason, "use lepta export gguf, which says it")
    return _by_pieces(model, file)


def _by_rule(model: Deployed) -> Verdict:
    check = check_llama_cpp(model.vocabulary, None)
    found = recognise(model.vocabulary.tokenizer)
    if found.name:
        return Verdict("works", check.evidence)
    if check.passed:
        rule = rule_of(model.vocabulary.spec)
        step = "lepta export gguf, or the lines below into its converter"
        return Verdict("step", f"rule {rule} with a new hash", step, patch(found, str(rule)), PLACE)
    return Verdict("unknown", check.evidence)


def _by_pieces(model: Deployed, file: Path) -> Verdict:
    """What sentencepiece, whose file it is, makes of the texts: the converter takes pieces and scores from there."""
    from sentencepiece import SentencePieceProcessor

    try:
        processor: Any = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        return Verdict("fails", f"{SENTENCEPIECE_FILE}: not a SentencePiece model ({error})", "write it again")
    expected = model.vocabulary.encode(model.texts)
    other = sum(list(a) != b for a, b in zip(processor.encode(model.texts), expected, strict=True))
    if other:
        reason = (
            f"{SENTENCEPIECE_FILE} ({processor.vocab_size():,} pieces): other ids in {other} of {len(expected)} texts"
        )
        return Verdict("fails", reason, "write it again: it is of another vocabulary", tried=True)
    return Verdict("works", f"{SENTENCEPIECE_FILE} has the ids of tokenizer.json")


def _untie() -> Verdict:
    reason = "config.json ties a head that is stored and differs; it is dropped"
    return Verdict("step", reason, "say so in config.json", '"tie_word_embeddings": false,', "config.json")


def server(model: Deployed, most_rows: int | None = None) -> Verdict:
    """SGLang and vLLM: what their transformers reads, and their rules for rows; LoRA may have `most_rows`.

    Rows are padded to a multiple of 64, of which each of 2, 4 or 8 GPUs takes its part.
    """
    try:
        tokenizer = _read_by(load_tokenizer(model.folder), model)  # a package missing here says nothing of there
    except LeptaError as error:
        return Verdict("fails", _brief(error, model))
    if tokenizer.status != "works":
        return Verdict(tokenizer.status, f"as transformers 5: {tokenizer.reason}", tokenizer.step)
    if model.head_is_dropped:
        return _untie()
    rows = model.checkpoint.rows
    padded = -(-rows // PADDED_TO) * PADDED_TO
    reason = f"{rows:,} rows" + (f", which it pads to {padded:,}" if padded > rows else "") + ": 1, 2, 4, 8 GPUs"
    status: Status = "works"
    if most_rows and rows > most_rows:
        status = "limits"
        reason += f"; no LoRA above {most_rows:,} rows"
    if transformers_4(model).status == "step":
        return Verdict("step", reason, "releases on transformers 4: as for that")
    return Verdict(status, reason)


def ctranslate2(model: Deployed) -> Verdict:
    """CTranslate2: a converter for each type of model. It lists tokens by id: a missing id shifts all after it."""
    kind = str(model.checkpoint.config.get("model_type"))
    if kind not in CTRANSLATE2:
        return Verdict("fails", f"no converter for model type {kind}")
    dense = check_dense(model.vocabulary)
    if not dense.passed:
        return Verdict("fails", f"{dense.evidence}: tokens after it get other rows", "give unused ids a token")
    if transformers_4(model).status == "step":
        return Verdict("step", f"model type {kind}", "where it converts with transformers 4: as for that")
    return Verdict("works", f"model type {kind}, no holes in the ids")


def peft(model: Deployed) -> Verdict:
    """PEFT: LoRA goes on the body; adapters of the original that hold embeddings have other rows."""
    if model.checkpoint.tied:
        return Verdict("works", "LoRA on the body (not on embeddings or head: one matrix)")
    return Verdict("works", "LoRA on the body; adapters that hold old rows do not fit")


def draft_model(model: Deployed) -> Verdict:
    """Speculative decoding: the draft must mean the same by each id."""
    step = "lepta init --model DRAFT --tokenizer MODEL"
    if model.draft is None:
        return _original_as_draft(model, step)
    own, other = model.vocabulary, model.draft.vocabulary()
    same = sum(map(operator.eq, own.bytes_of, other.bytes_of))
    difference = abs(own.size - other.size)
    if same < min(own.size, other.size):
        return Verdict("fails", f"{same:,} of {own.size:,} ids mean the same", step, tried=True)
    if difference > DRAFT_DIFFERENCE:
        return Verdict("fails", f"{difference:,} ids on one side only", step, tried=True)
    if difference:
        reason = f"{difference} ids on one side only: llama.cpp takes it (up to {DRAFT_DIFFERENCE}), vLLM does not"
        return Verdict("limits", reason, step, tried=True)
    return Verdict("works", "all ids mean the same; vLLM wants as many rows, too", tried=True)


def _original_as_draft(model: Deployed, step: str) -> Verdict:
    if model.tokenizer.id_map is None:
        return Verdict("unknown", "name one with --draft")
    ids = model.tokenizer.id_map.get("ids") or []
    kept = sum(map(operator.eq, ids, range(len(ids))))
    if kept == len(ids) == model.vocabulary.size:
        return Verdict("works", "one with the original's vocabulary fits")
    reason = f"not the original's: {kept:,} of {model.vocabulary.size:,} ids mean the same"
    if len(ids) == model.vocabulary.size:
        reason += (
            "; vLLM, which compares sizes, takes it: text of those ids is drafted as before, the new language is not"
        )
    return Verdict("limits", reason, step)


@dataclass(frozen=True)
class Consumer:
    """A program that runs models: its name for people, and what judges a folder for it."""

    title: str
    judge: Callable[[Deployed], Verdict]
    reads_weights: bool = True

    def verdict(self, model: Deployed) -> Verdict:
        """What it makes of a folder; one whose weights and config do not fit is refused by all that read them."""
        if self.reads_weights and model.fault:
            return Verdict("fails", model.fault, "correct config.json, or write the folder again")
        return self.judge(model)


CONSUMERS = {
    "transformers-5": Consumer("transformers 5", transformers_5),
    "transformers-4": Consumer("transformers 4", transformers_4),
    "tokenizers": Consumer("tokenizers", tokenizers_python, reads_weights=False),
    "tokenizers-js": Consumer("tokenizers (JS)", tokenizers_javascript, reads_weights=False),
    "llama.cpp": Consumer("llama.cpp", llama_cpp),
    "vllm": Consumer("vLLM", partial(server, most_rows=LORA_ROWS)),
    "sglang": Consumer("SGLang", server),
    "ctranslate2": Consumer("CTranslate2", ctranslate2),
    "peft": Consumer("PEFT", peft),
    "draft": Consumer("draft model", draft_model, reads_weights=False),
}
