"""LEPTA: give an open LLM, and all its instruct variants, a vocabulary for another language.

The verbs of the command line are functions here. Models and tokenizers are named by a folder or a hub id, or are open
already (`opened` and `open_tokenizer` take GGUF files too). Results go into an existing empty folder; `publishing`
gives one that gets its name only when all went well::

    import lepta

    tokenizer = lepta.build_vocabulary("model", ["corpus.txt"], "extended", add=8000)
    with lepta.publishing("adapted") as folder:
        lepta.initialise("model", tokenizer, folder)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lepta.core.errors import LeptaError as LeptaError
from lepta.version import __version__ as __version__

if TYPE_CHECKING:  # what type checkers and editors see; a test compares it with `_HOME`
    from lepta.calibration.calibrate import Place as Place
    from lepta.calibration.calibrate import calibrate_folder as calibrate_folder
    from lepta.calibration.settings import AnswerSettings as AnswerSettings
    from lepta.calibration.settings import CalibrateSettings as CalibrateSettings
    from lepta.calibration.settings import EffectSettings as EffectSettings
    from lepta.core.output import publishing as publishing
    from lepta.distillation.distill import distill_folder as distill_folder
    from lepta.distillation.settings import DistillSettings as DistillSettings
    from lepta.embeddings.initialise import initialise as initialise
    from lepta.embeddings.patch import apply_patch as apply_patch
    from lepta.embeddings.patch import export_patch as export_patch
    from lepta.embeddings.propagate import propagate as propagate
    from lepta.embeddings.transfer import Transfer as Transfer
    from lepta.embeddings.transfer import transfer_matrix as transfer_matrix
    from lepta.evaluation.instructions import instruction_following as instruction_following
    from lepta.evaluation.instructions import read_instructions as read_instructions
    from lepta.evaluation.measure import ModelMeasure as ModelMeasure
    from lepta.evaluation.measure import measure_model as measure_model
    from lepta.evaluation.minimal_pairs import minimal_pairs as minimal_pairs
    from lepta.evaluation.minimal_pairs import read_pairs as read_pairs
    from lepta.evaluation.pairwise import compare_models as compare_models
    from lepta.models.folder import Checkpoint as Checkpoint
    from lepta.models.load import opened as opened
    from lepta.pipeline import adapt as adapt
    from lepta.recipe import Recipe as Recipe
    from lepta.recipe import read_recipe as read_recipe
    from lepta.text.sources import read_documents as read_documents
    from lepta.training.blocks import TrainingText as TrainingText
    from lepta.training.pretrain import HeldOut as HeldOut
    from lepta.training.pretrain import pretrain_folder as pretrain_folder
    from lepta.training.settings import PretrainSettings as PretrainSettings
    from lepta.training.settings import TuneSettings as TuneSettings
    from lepta.training.tune import tune_folder as tune_folder
    from lepta.vocabulary.build import build_vocabulary as build_vocabulary
    from lepta.vocabulary.build import save_vocabulary as save_vocabulary
    from lepta.vocabulary.check import Check as Check
    from lepta.vocabulary.check import check_vocabulary as check_vocabulary
    from lepta.vocabulary.measure import Measure as Measure
    from lepta.vocabulary.measure import measure as measure
    from lepta.vocabulary.source import TokenizerSource as TokenizerSource
    from lepta.vocabulary.source import open_tokenizer as open_tokenizer
    from lepta.vocabulary.tokens import Vocabulary as Vocabulary

# Name -> module. Loaded on first use: torch and transformers take seconds to import.
_HOME = {
    "AnswerSettings": "lepta.calibration.settings",
    "CalibrateSettings": "lepta.calibration.settings",
    "Check": "lepta.vocabulary.check",
    "Checkpoint": "lepta.models.folder",
    "DistillSettings": "lepta.distillation.settings",
    "EffectSettings": "lepta.calibration.settings",
    "HeldOut": "lepta.training.pretrain",
    "Measure": "lepta.vocabulary.measure",
    "ModelMeasure": "lepta.evaluation.measure",
    "Place": "lepta.calibration.calibrate",
    "PretrainSettings": "lepta.training.settings",
    "Recipe": "lepta.recipe",
    "TokenizerSource": "lepta.vocabulary.source",
    "TrainingText": "lepta.training.blocks",
    "Transfer": "lepta.embeddings.transfer",
    "TuneSettings": "lepta.training.settings",
    "Vocabulary": "lepta.vocabulary.tokens",
    "adapt": "lepta.pipeline",
    "apply_patch": "lepta.embeddings.patch",
    "build_vocabulary": "lepta.vocabulary.build",
    "calibrate_folder": "lepta.calibration.calibrate",
    "check_vocabulary": "lepta.vocabulary.check",
    "compare_models": "lepta.evaluation.pairwise",
    "distill_folder": "lepta.distillation.distill",
    "export_patch": "lepta.embeddings.patch",
    "initialise": "lepta.embeddings.initialise",
    "instruction_following": "lepta.evaluation.instructions",
    "measure": "lepta.vocabulary.measure",
    "measure_model": "lepta.evaluation.measure",
    "minimal_pairs": "lepta.evaluation.minimal_pairs",
    "open_tokenizer": "lepta.vocabulary.source",
    "opened": "lepta.models.load",
    "pretrain_folder": "lepta.training.pretrain",
    "propagate": "lepta.embeddings.propagate",
    "publishing": "lepta.core.output",
    "read_documents": "lepta.text.sources",
    "read_instructions": "lepta.evaluation.instructions",
    "read_pairs": "lepta.evaluation.minimal_pairs",
    "read_recipe": "lepta.recipe",
    "save_vocabulary": "lepta.vocabulary.build",
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
    return sorted(__all__)
