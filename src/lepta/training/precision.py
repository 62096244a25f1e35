"""Which precision a run multiplies in: decided once, for all its processes and for whoever goes on with it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from accelerate.utils import broadcast_object_list

from lepta.core.errors import LeptaError
from lepta.core.output import write_json
from lepta.models.load import device, load_model
from lepta.models.precision import DTYPES, config_of, fastest_on_cpu, name_of
from lepta.text.locate import read_json
from lepta.training.distributed import processes
from lepta.training.settings import PretrainSettings, TuneSettings

PRECISION = "precision.json"  # among a run's checkpoints


class Precise(Protocol):
    """Settings of a kind of training."""

    @property
    def body_dtype(self) -> str:
        """As a user says it."""

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """The same with other values."""


Settings = TypeVar("Settings", bound=Precise)


def products_dtype(settings: Precise, config: Any) -> torch.dtype:
    """Precision of the body's products: as the settings say, else bfloat16 on a GPU that has it, or a CPU's fastest.

    Parameters
    ----------
    settings : Precise
    config : transformers config
        Of the model.
    """
    if settings.body_dtype in DTYPES:
        return DTYPES[settings.body_dtype]
    if device().type == "cpu":
        return fastest_on_cpu(config)
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def begun_with(work: Path, choose: Callable[[], torch.dtype]) -> torch.dtype:
    """The precision that a run began with, or the one that is chosen and written down now; for one process.

    Parameters
    ----------
    work : Path
        Folder of the run's checkpoints.
    choose : callable
    """
    file = work / PRECISION
    if not file.is_file():
        write_json(file, {"dtype": name_of(choose())})
    return DTYPES[read_json(file)["dtype"]]


def noted(work: Path) -> dict[str, str]:
    """What `begun_with` wrote down, for a manifest: `dtype`; nothing if no model was loaded here."""
    file = work / PRECISION
    return read_json(file) if file.is_file() else {}


def agreed(work: Path, choose: Callable[[], torch.dtype]) -> torch.dtype:
    """As `begun_with`, where all processes take part: the first one decides."""
    box = [""]
    if processes().is_main_process:
        box = [name_of(begun_with(work, choose))]
    if processes().num_processes > 1:
        broadcast_object_list(box)
    return DTYPES[box[0]]


def settled(settings: Settings, source: Path, work: Path) -> Settings:
    """Settings that name the precision of a run where they say `auto`; all its processes come here.

    Parameters
    ----------
    settings : Precise
    source : Path
        Model folder that is trained.
    work : Path
        Folder of the run's checkpoints.
    """
    if settings.body_dtype != "auto":
        return settings
    dtype = agreed(work, lambda: products_dtype(settings, config_of(source)))
    return settings.model_copy(update={"body_dtype": name_of(dtype)})


def load_for_training(folder: Path, settings: PretrainSettings | TuneSettings) -> Any:
    """Load a model with its body in the precision of the settings; weights that train become float32 later."""
    dtype = products_dtype(settings, config_of(folder))
    if settings.trains == "full":
        return load_model(folder, torch.float32)
    if settings.body_dtype != "4bit":
        return load_model(folder, dtype)
    if device().type == "cpu":
        raise LeptaError("body_dtype: 4bit needs a GPU: bitsandbytes has no gradients through such layers on CPUs")
    return load_model(folder, dtype, four_bits=True)
