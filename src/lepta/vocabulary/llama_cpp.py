"""Will llama.cpp's converter recognise a tokenizer?

GGUF files name the rule that cuts text into words, and the converter finds the name by the hash of the ids of one test
text (`get_vocab_base_pre` in llama.cpp, MIT licence; text and hashes are facts about it). The text holds a little
Bulgarian, so new Cyrillic tokens may change the hash although the rule is the same.
"""

import hashlib
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from lepta.vocabulary.gguf_tokenizer import PRE_TOKENIZERS
from lepta.vocabulary.tokenizer_json import components

TEST_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n"
    "🚀 (normal) 😶\u200d🌫\ufe0f (multiple emojis concatenated) ✅ 🦙🦙 "
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, "
    "'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
KNOWN_HASHES = {
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",
}


class Recognition(NamedTuple):
    """What llama.cpp's converter makes of a tokenizer."""

    hash: str  # SHA-256 of the ids of the test text
    name: str | None  # of the rule, if the converter knows the hash


def recognise(tokenizer: Tokenizer) -> Recognition:
    """Compute the hash as the converter does: of the printed list of ids, start of text included."""
    digest = hashlib.sha256(str(tokenizer.encode(TEST_TEXT).ids).encode()).hexdigest()
    return Recognition(digest, KNOWN_HASHES.get(digest))


def rule_of(spec: dict[str, Any]) -> str | None:
    """llama.cpp's name of the rule by which a `tokenizer.json` cuts text into words; None if it is not known here.

    The tokens do not count. With the name goes whether words that are tokens skip the merges.
    """
    rule, skips = _rule(spec.get("pre_tokenizer")), bool(spec["model"].get("ignore_merges"))
    for name, (pre_tokenizer, _, ignore_merges) in PRE_TOKENIZERS.items():
        if rule == _rule(pre_tokenizer) and skips == ignore_merges:
            return name
    return None


def _rule(pre_tokenizer: Any) -> list[tuple[Any, ...]]:
    """What of a pre-tokenizer decides where text is cut."""
    keys = ("type", "pattern", "behavior", "invert", "individual_digits", "use_regex", "add_prefix_space")
    return [tuple(map(step.get, keys)) for step in components(pre_tokenizer)]


PLACE = "get_vocab_base_pre (convert_hf_to_gguf.py or conversion/base.py)"  # of llama.cpp: where the lines go


def patch(new: Recognition, name: str) -> str:
    """The two lines that teach the converter a new hash."""
    return f'if chkhsh == "{new.hash}":\n    res = "{name}"'
