"""A text in the pieces that a tokenizer cuts it into, each with how its bytes can be shown."""

from itertools import groupby
from typing import Any

from lepta.vocabulary.tokens import Kind, Vocabulary, runs_of_text

LOOKS = {" ": "space", "\n": "newline", "\t": "tab"}


def pieces(vocabulary: Vocabulary, text: str) -> list[dict[str, Any]]:
    """Cut a text where a tokenizer does.

    Returns
    -------
    list of dict
        One for each token: `id`, `special` (an added token, also that for unknown characters) and `parts`, a list of
        (look, characters) with the looks of `parts_of`.
    """
    return [
        {
            "id": token_id,
            "special": bool(vocabulary.kinds[token_id] == Kind.SPECIAL),
            "parts": parts_of(vocabulary.data(token_id)),
        }
        for token_id in vocabulary.encode([text])[0]
    ]


def parts_of(data: bytes) -> list[tuple[str, str]]:
    """Cut the bytes of a token by how they can be shown.

    Returns
    -------
    list of (look, characters)
        `text`; one `space`, `newline` or `tab`; `code`: other invisible characters as U+00A0; `hex`: bytes that are
        part of a character, as D0.
    """
    parts = []
    for run in runs_of_text(data):
        if isinstance(run, bytes):
            parts.append(("hex", run.hex(" ").upper()))
            continue
        for look, group in groupby(run, lambda c: LOOKS.get(c) or ("text" if c.isprintable() else "code")):
            if look == "text":
                parts.append((look, "".join(group)))
            else:
                parts += [(look, f"U+{ord(c):04X}" if look == "code" else c) for c in group]
    return parts
