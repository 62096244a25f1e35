"""The vocabulary scenarios (paper 2.4.1): their names, and which numbers go with which."""

from collections.abc import Sequence
from typing import Literal

Scenario = Literal["extended", "replaced", "optimized", "bpe", "unigram"]
KeepBy = Literal["frequency", "rank"]
KEEP_IDS = ("extended", "replaced")  # old tokens that stay have their old ids

# Written beside a new tokenizer: its scenario, for each old id the new one, or null if the token is gone, and for
# `replaced` the share of documents whose ids may change.
ID_MAP = "id_map.json"
LARGEST_VOCABULARY = 1 << 22  # tokens; 16 times the largest of an open model (Gemma, 262,144)
LARGEST_PADDING = 1 << 16  # rows; what hardware asks for is 64 to 1024


def misfit(
    scenario: Scenario, add: int | None, size: int | str | None, keep: int | None, keep_text: Sequence[str] = ()
) -> str:
    """Why these numbers cannot be had of a scenario, and what to give; empty if they can."""
    if scenario == "replaced" and add is None:
        return "scenario replaced keeps the size: give `add`, the number of tokens that are replaced by new ones"
    if keep_text and scenario != "replaced":
        return f"`keep_text`: only scenario replaced chooses tokens by it, not {scenario}"
    if (add is None) == (size is None):
        return "give either `add` (number of new tokens) or `size` (of the whole vocabulary)"
    for name, number in (("add", add), ("size", size)):
        if isinstance(number, int) and number > LARGEST_VOCABULARY:
            return f"`{name}` {number}: more tokens than any vocabulary has; give at most {LARGEST_VOCABULARY:,}"
    if size == "auto" and scenario != "extended":
        return f"`size` auto: only of scenario extended; for {scenario} name a size"
    if keep is not None and scenario != "optimized":
        return f"`keep` {keep}: scenario {scenario} keeps all old tokens or none; expected scenario optimized"
    if size is None and scenario == "unigram":
        return "scenario unigram replaces the vocabulary: give its whole `size`, not `add`"
    return ""
