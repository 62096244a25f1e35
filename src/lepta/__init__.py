"""LEPTA: give an open LLM, and all its instruct variants, a vocabulary for another language.

The verbs of the command line are functions here. They write into an existing empty folder; `publishing` gives one that
gets its name only when all went well::

    from lepta import Checkpoint, build_vocabulary, initialise, open_tokenizer, publishing

    tokenizer = build_vocabulary(open_tokenizer("model"), ["corpus.txt"], "extended", add=8000)
    with publishing(Path("adapted")) as folder:
        initialise(Checkpoint("model"), tokenizer, folder)
"""

from importlib import import_module
from typing import Any

from lepta.core.errors import LeptaError
from lepta.version import __version__

# Name -> module. Loaded on first use: torch and transformers take seconds to import.
_VERBS = {
    "Checkpoint": "lepta.models.folder",
    "adapt": "lepta.adapt",
    "apply_patch": "lepta.embeddings.patch",
    "build_vocabulary": "lepta.vocabulary.build",
    "calibrate_folder": "lepta.calibration.calibrate",
    "check_vocabulary": "lepta.vocabulary.check",
    "distill_folder": "lepta.distillation.distill",
    "export_patch": "lepta.embeddings.patch",
    "initialise": "lepta.embeddings.initialise",
    "measure": "lepta.vocabulary.measure",
    "measure_model": "lepta.evaluation.measure",
    "open_tokenizer": "lepta.vocabulary.source",
    "pretrain_folder": "lepta.training.pretrain",
    "propagate": "lepta.embeddings.propagate",
    "publishing": "lepta.core.output",
    "read_recipe": "lepta.recipe",
    "transfer_matrix": "lepta.embeddings.transfer",
    "tune_folder": "lepta.training.tune",
}
__all__ = ["LeptaError", "__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'lepta' has no attribute {name!r}")
