"""Text that two tokenizers are compared on: what languages, people and programs write.

python -c "from lepta.deployment.probe import probe_lines; print(probe_lines()[:40])"
"""

import random
import unicodedata

from lepta.core.shipped import shipped_data

LINES = 2_000
_TEXTS = shipped_data("deployment/probe.yaml")
SENTENCES, CODE, BREAKS = _TEXTS["sentences"], _TEXTS["code"], _TEXTS["breaks"]
EMOJI, SIGNS, NUMBERS = _TEXTS["emoji"], _TEXTS["signs"], _TEXTS["numbers"]


def probe_lines(number: int = LINES) -> list[str]:
    """Texts of a few words up to a few lines: first those above as they are, then parts of them mixed.

    The same number gives the same texts. A third has composed letters (NFC), a third decomposed ones (NFD).
    """
    chance = random.Random(1)
    lines = [*SENTENCES, *CODE, EMOJI, SIGNS, NUMBERS]
    while len(lines) < number:
        lines.append(_mixed(chance))
    lines = lines[:number]
    lines[1::3] = [unicodedata.normalize("NFC", line) for line in lines[1::3]]
    lines[2::3] = [unicodedata.normalize("NFD", line) for line in lines[2::3]]
    return lines


def _mixed(chance: random.Random) -> str:
    """Some words of one or two sentences, with emoji, signs, numbers and code among them."""
    words = " ".join(chance.sample(SENTENCES, chance.choice([1, 1, 2]))).split(" ")
    start = chance.randrange(len(words))
    parts = words[start : start + chance.randint(2, 12)]
    for kind in (EMOJI.split(), SIGNS.split(), NUMBERS.split(), CODE):
        if chance.random() < 0.2:
            parts.insert(chance.randrange(len(parts) + 1), chance.choice(kind))
    text = "".join(part + chance.choice(BREAKS) for part in parts)
    match chance.randrange(6):
        case 0:
            return text.upper()
        case 1:
            return text.title()
        case _:
            return text
