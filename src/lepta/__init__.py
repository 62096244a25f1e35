"""LEPTA: give an open LLM, and all its instruct variants, a vocabulary for another language.

The verbs of the command line are functions here. They write into an existing empty folder; `publishing` gives one that
gets its name only when all went well::

    from lepta import Checkpoint, build_vocabulary, initialise, open_tokenizer, publishing

    tokenizer = build_vocabulary(open_tokenizer("model"), ["corpus.txt"], "extended", add=8000)
    with publishing(Path("adapted")) as folder:
        initialise(Checkpoint("model"), tokenizer, folder)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lepta.core.errors import LeptaError as LeptaError
from lepta.version import __version__ as __version__

if TYPE_CHECKING:  # what type checkers and editors see; a test compares it with `_HOME`
    from lepta.calibration.calibrate import calibrate_folder as calibrate_folder
    from lepta.core.output import publishing as publishing
    from lepta.distillation.distill import distill_folder as distill_folder
    from lepta.embeddings.initialise import initialise as initialise
    from lepta.embeddings.patch import apply_patch as apply_patch
    from lepta.embeddings.patch import export_patch as export_patch
    from lepta.embeddings.propagate import propagate as propagate
    from lepta.embeddings.transfer import transfer_matrix as transfer_matrix
    from lepta.evaluation.measure import measure_model as measure_model
    from lepta.models.folder import Checkpoint as Checkpoint
    from lepta.pipeline import adapt as adapt
    from lepta.recipe import read_recipe as read_recipe
    from lepta.training.pretrain import pretrain_folder as pretrain_folder
    from lepta.training.tune import tune_folder as tune_folder
    from lepta.vocabulary.build import build_vocabulary as build_vocabulary
    from lepta.vocabulary.check import check_vocabulary as check_vocabulary
    from lepta.vocabulary.measure import measure as measure
    from lepta.vocabulary.source import open_tokenizer as open_tokenizer

# Name -> module. Loaded on first use: torch and transformers take seconds to import.
_HOME = {
    "Checkpoint": "lepta.models.folder",
    "adapt": "lepta.pipeline",
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
__all__ = ["LeptaError", "__version__", *_HOME]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'lepta' has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
