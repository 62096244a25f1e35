"""The names of the vocabulary scenarios (paper 2.4.1)."""

from typing import Literal

Scenario = Literal["extended", "optimized", "bpe", "unigram"]
KeepBy = Literal["frequency", "rank"]

# Written beside a new tokenizer: its scenario, and for each old id the new one, or null if the token is gone.
ID_MAP = "id_map.json"
