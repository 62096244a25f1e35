"""Where sentences end, in Russian and English."""

import regex

BOUNDARY = regex.compile(r"[.!?…]+[»”\")\]]*(?P<space>\s+)(?=[«“\"(\[—–-]*\s*[\p{Lu}\d])")
LAST_WORD = regex.compile(r"(?<![\p{L}\d])([\p{L}.]+)\.$")
# A full stop after these ends no sentence; nor does one after an initial.
SHORT = frozenset(
    regex.split(
        " ",
        "т п е г гг в вв с стр рис табл гл ст ул пл пр просп д кв корп им св акад проф доц руб коп тыс млн млрд см ср "
        "напр др мин сек ок обл оз mr mrs ms dr st no vs fig jr sr e.g i.e т.е т.к т.н",
    )
)


def sentences(text: str) -> list[str]:
    """Cut a text into sentences: at line ends, and after . ! ? … where a new sentence starts.

    Full stops after initials ("А. С. Пушкин") and common abbreviations ("ул. Ленина") do not count. Spaces inside a
    sentence become single ones.
    """
    found = []
    for line in text.splitlines():
        start = 0
        for match in BOUNDARY.finditer(line):
            if _ends_sentence(line[start : match.start("space")]):
                found.append(line[start : match.start("space")])
                start = match.end("space")
        found.append(line[start:])
    return [" ".join(sentence.split()) for sentence in found if sentence.strip()]


def _ends_sentence(text: str) -> bool:
    match = LAST_WORD.search(text)
    if match is None:
        return True
    word = match[1]
    return not (word.lower() in SHORT or (len(word) == 1 and word.isupper()))
