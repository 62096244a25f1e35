"""Does transformers read a folder's tokenizer as its file says?

For some types of models (`qwen2`, `qwen3_5`) `AutoTokenizer` takes the tokens from `tokenizer.json` and builds the rest
itself, whatever the file says. Which type it is stands in `config.json`, so the folder is loaded with that beside it.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lepta.core.errors import LeptaError
from lepta.vocabulary.source import TOKEN_FILES, TokenizerSource, open_tokenizer
from lepta.vocabulary.tokens import Kind, Vocabulary

MODEL_CONFIG = "config.json"
SAMPLED, WORDS = 200, 40  # tokens whose own text is tried, and how many of them a text has
SHOWN = 24  # characters of a text that differs

# Text that no new vocabulary may harm: code, other languages and scripts, signs.
OTHER_TEXT = [
    'def area(width: float, height: float) -> float:\n    """Of a rectangle."""\n    return width * height  # m²\n',
    "for (let i = 0; i < 10; i++) {\n\tconsole.log(`${i}\\t${i ** 2}`);\n}\n",
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name;\r\n",
    "The quick brown fox jumps over the lazy dog; it’s 3.14159 — “quoted” … and 1,000,000 more.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Le cœur déçu mais l’âme plutôt naïve, Louÿs rêva de crapaüter en canoë.",
    "Η γρήγορη αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.",
    "敏捷的棕色狐狸跳过了懒狗。いろはにほへと ちりぬるを。다람쥐 헌 쳇바퀴에 타고파.",
    "نص حكيم له سر قاطع. दुनिया भर के लोग।",
    "👩‍🔬 🇫🇷 ✅ x² ≠ √y → ∞\n\n\n    indented\t\ttabs   ",
]


def load_tokenizer(folder: Path, forgiving: bool = True) -> Any:
    """Load the tokenizer of a model folder through transformers, chat template included.

    `forgiving` goes on without a package that only `AutoTokenizer` wants, as it does for Mistral.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except ImportError:
            # For a Mistral transformers imports mistral_common, where that is installed, even if tokenizer.json is all
            # it then reads.
            if not (forgiving and (folder / "tokenizer.json").is_file()):
                raise
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except ImportError as error:
        raise LeptaError(
            f"{folder}: transformers needs another package to load this tokenizer ({error}); install it, or give a "
            "folder with tokenizer.json"
        ) from error
    except Exception as error:  # whatever a tokenizer class raises
        open_tokenizer(folder)  # has the better message where a file is missing or broken
        raise LeptaError(f"{folder}: transformers cannot load this tokenizer ({error})") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # made of nothing, where a class is named and no file is there
        open_tokenizer(folder)
        raise LeptaError(f"{folder}: the tokenizer has special tokens only; expected a tokenizer.json with all")
    return tokenizer


def sample_text(vocabulary: Vocabulary) -> list[str]:
    """Text of the tokens themselves: of some, evenly chosen, and of the last ones, where new tokens are.

    So it is in every script that the vocabulary has tokens of.
    """
    ids = vocabulary.ids_of(Kind.TEXT)
    even = np.unique(np.linspace(0, len(ids) - 1, min(SAMPLED, len(ids)), dtype=int)).tolist()
    chosen = [*(ids[place] for place in even), *ids[-SAMPLED:]]
    words = [vocabulary.data(token_id).decode(errors="ignore").strip() for token_id in chosen]
    return [" ".join(words[start : start + WORDS]) for start in range(0, len(words), WORDS)]


def first_difference(loaded: Any, vocabulary: Vocabulary, texts: Sequence[str]) -> tuple[int, str | None]:
    """Of how many texts a tokenizer of transformers gives the ids that the file says, and the start of the first other.

    The start and end of text that a tokenizer adds are left out.
    """
    expected = vocabulary.encode(texts)
    actual = loaded(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    other = [text[:SHOWN] for text, a, b in zip(texts, actual, expected, strict=True) if a != b]
    return len(texts) - len(other), next(iter(other), None)


def load_exact(folder: Path) -> Any:
    """`load_tokenizer`; LeptaError if a `tokenizer.json` is there and transformers reads it otherwise than it says."""
    loaded = load_tokenizer(folder)
    if (folder / TOKEN_FILES[0]).is_file():  # any other file transformers converts in its own way
        _refuse_difference(loaded, open_tokenizer(folder))
    return loaded


def load_beside(tokenizer: TokenizerSource, model: Path) -> Any:
    """Load a tokenizer as in the folder of a model: from a place of its own, with that model's `config.json` if any."""
    with tempfile.TemporaryDirectory(prefix="lepta-") as name:
        folder = Path(name)
        tokenizer.save(folder)
        if (model / MODEL_CONFIG).is_file():
            shutil.copyfile(model / MODEL_CONFIG, folder / MODEL_CONFIG)
        try:
            return load_tokenizer(folder)
        except LeptaError as error:
            raise LeptaError(str(error).replace(str(folder), tokenizer.origin)) from error


def check_loading(tokenizer: TokenizerSource, model: Path) -> None:
    """LeptaError if transformers would read a tokenizer otherwise than its file says in the folder of a model."""
    _refuse_difference(load_beside(tokenizer, model), tokenizer)


def _refuse_difference(loaded: Any, tokenizer: TokenizerSource) -> None:
    vocabulary = tokenizer.vocabulary()
    _, other = first_difference(loaded, vocabulary, [*OTHER_TEXT, *sample_text(vocabulary)])
    if other is not None:
        raise LeptaError(
            f"{tokenizer.origin}: transformers reads this tokenizer as {type(loaded).__name__}, which does not follow "
            f"its tokenizer.json (other ids first at {other!r}); expected a tokenizer of the family that this type of "
            "model has, as scenarios extended and optimized keep it"
        )
