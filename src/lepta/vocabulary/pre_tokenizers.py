"""Parts of a `tokenizer.json` that several readers write: how text is cut into words, and what stands before it."""

from typing import Any

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")
# What ByteLevel itself does when it is told to use its expression.
GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def byte_level(use_regex: bool) -> dict[str, Any]:
    """Change to the byte alphabet, without a space put before the text."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split(regex: str) -> dict[str, Any]:
    """Cut out what a regular expression matches, and keep it."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    """One after the other."""
    return {"type": "Sequence", "pretokenizers": list(parts)}


def starts_with(token: str, token_id: int) -> dict[str, Any]:
    """A post-processor that puts a special token before each text."""
    return around({token: token_id}, {})


def around(first: dict[str, int], last: dict[str, int]) -> dict[str, Any]:
    """A post-processor that puts special tokens before and after each text; both are token -> id, in order."""

    def parts(type_id: int) -> list[dict[str, Any]]:
        before = [{"SpecialToken": {"id": token, "type_id": type_id}} for token in first]
        after = [{"SpecialToken": {"id": token, "type_id": type_id}} for token in last]
        return [*before, {"Sequence": {"id": "AB"[type_id], "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": parts(0),
        "pair": [*parts(0), *parts(1)],
        "special_tokens": {
            token: {"id": token, "ids": [token_id], "tokens": [token]} for token, token_id in (first | last).items()
        },
    }
