"""LEPTA: give an open LLM, and all its instruct variants, a vocabulary for another language.

The verbs of the command line are functions here. Models and tokenizers are named by a folder or a hub id, or are open
already (`opened` and `open_tokenizer` take GGUF files too). Results go into an existing empty folder; `publishing`
gives one that gets its name only when all went well::

    import lepta

    tokenizer = lepta.build_vocabulary("model", ["corpus.txt"], "extended", add=8000)
    with lepta.publishing("adapted") as folder:
        lepta.initialise("model", tokenizer, folder)
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError as LeptaError
from lepta.version import __version__ as __version__

# Name -> module, as the stub lists them for type checkers and editors. Each is loaded on first use: torch and
# transformers take seconds to import.
_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_HOME = {name: module for module, name in re.findall(r"^from (\S+) import (\w+)", _STUB, re.MULTILINE)}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lepta' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
