"""Settings of a run of the benchmark."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from lepta.core.errors import LeptaError
from lepta.core.reading import expanded
from lepta.darumeru.data import BUILTIN, HUB
from lepta.darumeru.tasks import named_tasks
from lepta.inference.settings import Thinking


def _known(names: list[str]) -> list[str]:
    try:
        named_tasks(names)
    except LeptaError as error:
        raise ValueError(str(error)) from error
    return names


TaskNames = Annotated[list[str], AfterValidator(_known)]


class Benchmark(Thinking):
    """Darumeru, the benchmark (docs/darumeru.md)."""

    data: str = Field(default="builtin", description="builtin, hub, or a folder of datasets")
    tasks: TaskNames = Field(default_factory=list, description="Names of tasks; default: all 17")
    limit: int | None = Field(default=None, ge=1, description="Rows of each task; default: all")
    shots: int = Field(
        default=5, ge=0, description="Examples before a question in plain text; a chat template gets none"
    )

    @model_validator(mode="after")
    def _data_is_there(self) -> "Benchmark":
        """A missing dataset is told before anything runs, not after training."""
        if self.data not in (BUILTIN, HUB):
            for name in {task.dataset for task in named_tasks(self.tasks)}:
                if not (expanded(self.data) / name).is_dir():
                    raise ValueError(
                        f"data: {self.data}/{name}: no such folder; expected {BUILTIN}, {HUB} or a folder "
                        "of datasets, as `lepta darumeru import` writes them"
                    )
        return self

    @property
    def files(self) -> dict[str, Path]:
        """Label -> the folder of data, if it is one."""
        return {} if self.data in (BUILTIN, HUB) else {"darumeru": expanded(self.data)}
