"""Which precision a run computes in: decided once, for all its processes and for a run that resumes it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import broadcast_object_list
from pydantic import BaseModel

from lepta.core.errors import LeptaError
from lepta.core.journal import read_record
from lepta.core.output import write_json
from lepta.models.load import device, load_model
from lepta.models.precision import DTYPES, config_of, fastest_on_cpu, name_of
from lepta.training.distributed import processes
from lepta.training.settings import QUANTISED, PretrainSettings, TuneSettings

PRECISION = "precision.json"  # among a run's checkpoints


class Precision(BaseModel):
    """A `precision.json`."""

    dtype: Literal["float32", "bfloat16", "float16"]


def compute_dtype(body_dtype: str, config: Any) -> torch.dtype:
    """Precision of the body's matrix products, for a `body_dtype` of the settings and a transformers config."""
    if body_dtype in DTYPES:
        return DTYPES[body_dtype]
    if device().type == "cpu":
        return fastest_on_cpu(config)
    # A T4 emulates bfloat16, so it is said to support it.
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def recorded_dtype(work: Path, choose: Callable[[], torch.dtype]) -> torch.dtype:
    """The precision that a run with checkpoints in `work` began with; if it begins now, choose and record one."""
    file = work / PRECISION
    if not file.is_file():
        write_json(file, {"dtype": name_of(choose())})
    return DTYPES[recorded(work)["dtype"]]


def recorded(work: Path) -> dict[str, str]:
    """What `recorded_dtype` wrote, for a manifest: `dtype`; nothing if no model was loaded in this run."""
    file = work / PRECISION
    return read_record(file, Precision).model_dump() if file.is_file() else {}


def agreed_dtype(work: Path, choose: Callable[[], torch.dtype]) -> torch.dtype:
    """As `recorded_dtype`, where all processes take part: the first one decides."""
    box = [""]
    if processes().is_main_process:
        box = [name_of(recorded_dtype(work, choose))]
    if processes().num_processes > 1:
        broadcast_object_list(box)
    return DTYPES[box[0]]


def resolved_body_dtype(body_dtype: str, source: Path, work: Path) -> str:
    """A `body_dtype` that is not `auto`, for the model folder `source`; all processes of the run call it."""
    if body_dtype != "auto":
        return body_dtype
    return name_of(agreed_dtype(work, lambda: compute_dtype(body_dtype, config_of(source))))


def load_for_training(folder: Path, settings: PretrainSettings | TuneSettings) -> Any:
    """Load a model with its body in the precision of the settings; weights that train become float32 later."""
    if settings.trains == "full":
        return load_model(folder, torch.float32)
    dtype = compute_dtype(settings.body_dtype, config_of(folder))
    bits = bits_of(settings.body_dtype)
    if bits and device().type == "cpu":
        raise LeptaError(
            f"body_dtype: {settings.body_dtype} needs a GPU: bitsandbytes has no gradients through such layers on CPUs"
        )
    return load_model(folder, dtype, bits)


def bits_of(body_dtype: str) -> int | None:
    """Bits of a weight in a quantised body; None where it is in a floating-point type."""
    return QUANTISED.get(body_dtype)
