"""Settings of a run of the benchmark."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lepta.core.errors import LeptaError
from lepta.core.reading import expanded
from lepta.core.settings import LARGEST_SEED, Section
from lepta.darumeru.data import BUILTIN, HUB
from lepta.darumeru.tasks import Definition, named_tasks, tasks
from lepta.inference.settings import Thinking

Api = Literal["completions", "chat"]  # of a server


def _known(names: list[str]) -> list[str]:
    try:
        named_tasks(names)
    except LeptaError as error:
        raise ValueError(str(error)) from error
    return names


def _one_by_one(names: list[str]) -> list[str]:
    """Names of a list whose entries are names joined by commas."""
    return list(filter(None, map(str.strip, ",".join(names).split(","))))


TaskNames = Annotated[list[str], AfterValidator(_known)]
JoinedTaskNames = Annotated[TaskNames, BeforeValidator(_one_by_one)]


class Benchmark(Thinking):
    """Darumeru, the benchmark (docs/darumeru.md)."""

    data: str = Field(default="builtin", description="builtin, hub, or a folder of datasets")
    tasks: TaskNames = Field(default_factory=list, description="Names of tasks; default: all 17")
    limit: int | None = Field(
        default=None, ge=1, description="Rows of each task (PARus asks each one twice); default: all"
    )
    shots: int = Field(
        default=5, ge=0, description="Examples before a question in plain text; a chat template gets none"
    )

    @model_validator(mode="after")
    def _data_is_there(self) -> "Benchmark":
        """A missing dataset is told before anything runs, not after training."""
        if self.data not in (BUILTIN, HUB):
            for task in named_tasks(self.tasks):
                if not (expanded(self.data) / task.dataset).is_dir():
                    raise ValueError(
                        f"data: {self.data}/{task.dataset}: no such folder; expected {BUILTIN}, {HUB} or a folder "
                        "of datasets, as `lepta darumeru import` writes them"
                    )
        return self

    @property
    def files(self) -> dict[str, Path]:
        """Label -> the folder of data, if it is one."""
        return {} if self.data in (BUILTIN, HUB) else {"darumeru": expanded(self.data)}


class TaskChoice(Section):
    """Which tasks, on which data."""

    data: str = Field(default=BUILTIN, description="builtin, hub or a folder of datasets")
    tasks: JoinedTaskNames = Field(
        default_factory=list, description=f"Names joined by commas; default: all 17 ({', '.join(tasks())})"
    )
    legacy: bool = Field(default=False, description="Definitions of the paper's runs")

    @property
    def definition(self) -> Definition:
        """Of the tasks."""
        return "legacy" if self.legacy else "current"


class RunSettings(TaskChoice):
    """How a command asks a model."""

    shots: int | None = Field(
        default=None, ge=0, description="Examples before a question; default: 0 for chat, 5 for plain"
    )
    limit: int | None = Field(
        default=None, ge=1, description="Rows of each task (PARus asks each one twice); default: all"
    )
    chat: bool | None = Field(
        default=None, description="Chat template or plain text; default: chat if there is a template"
    )
    context: int = Field(default=4096, ge=16, description="Most tokens of prompt and answer")
    thinking: int = Field(
        default=0, ge=0, description="Let the model think before it answers, for so many tokens at most"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Precision of products; auto: bfloat16 on a GPU, on a CPU what it is faster in when the run begins",
    )
    server: str | None = Field(
        default=None, description="OpenAI-compatible server that has the model; files here give the tokenizer"
    )
    server_model: str | None = Field(default=None, description="Name of the model on the server")
    server_api: Api = Field(
        default="completions",
        description="completions (token ids, probabilities) or chat (messages; labels are written)",
    )
    lm_eval: str | None = Field(
        default=None, description="Class of lm-evaluation-harness that runs the model, such as vllm or hf"
    )
    lm_eval_args: str = Field(default="", description="Its arguments, name=value,name=value")
    seed: int = Field(default=1, ge=0, le=LARGEST_SEED, description="Of the intervals' bootstrap")

    @model_validator(mode="after")
    def _one_runs_it(self) -> "RunSettings":
        if bool(self.server) != bool(self.server_model):
            raise ValueError("`server` and `server_model`: give both or none of them")
        if self.server and (self.lm_eval or self.lm_eval_args):
            raise ValueError("`server` and `lm_eval`: give one of them")
        if self.lm_eval_args and not self.lm_eval:
            raise ValueError("`lm_eval_args`: needs `lm_eval`")
        if self.dtype != "auto" and (self.server or self.lm_eval):
            raise ValueError("`dtype`: is for a model that runs here; the server, or `lm_eval_args`, sets its own")
        if self.lm_eval and self.thinking:
            raise ValueError(
                "`thinking` and `lm_eval`: lm-evaluation-harness has no budget of thinking; give one of them"
            )
        if self.server and self.server_api == "chat" and self.chat is False:
            raise ValueError("`server_api` chat and --plain: a chat server writes turns itself; leave one of them out")
        return self


class ImportSettings(Section):
    """Which rows of public files a dataset is made of."""

    shots: int = Field(default=5, ge=0, description="How many examples; of MMLU, for each subject")
    rows: int = Field(default=100, ge=1, description="text: how many sentences, and how many paragraphs")
    seed: int = Field(default=1, description="text: what draws them")
