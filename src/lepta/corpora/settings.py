"""What a user may write in a corpus file. Text sources are described in `lepta.text.sources`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lepta.core.settings import NAME, Section, Sources, known_script, read_settings
from lepta.text.sources import is_word_list

Share = Annotated[float, Field(ge=0, le=1)]


def _off(value: Any) -> Any:
    return None if value is False else value  # YAML reads `off` as false


class Source(Section):
    """One source of text, with what it counts for."""

    text: Sources = Field(description="Text sources: files, folders, starter:..., dataset:...")
    field: str = Field(default="text", min_length=1, description="Field of a row that holds the text")
    weight: float = Field(
        default=1.0, gt=0, description="2: each document twice; 0.5: every second one, by a hash of its text"
    )

    @field_validator("text")
    @classmethod
    def _running_text(cls, text: list[str]) -> list[str]:
        if lists := [source for source in text if is_word_list(source)]:
            raise ValueError(f"{lists[0]} is a list of words; name running text")
        return text


class Clean(Section):
    """What is taken out of documents that are kept (paper 2.4.1)."""

    unicode: Annotated[Literal["NFC", "NFKC"] | None, BeforeValidator(_off)] = Field(
        default="NFC",
        description="Normal form; NFKC also turns ligatures and full-width letters into plain ones; or off",
    )
    markup: bool = Field(default=True, description="HTML tags, comments, scripts and entities")
    links: bool = Field(default=True, description="Web addresses; of a Markdown link the words stay")
    symbols: bool = Field(default=True, description="Emoji and pictographs")
    scripts: list[str] = Field(
        default_factory=list, description="Unicode scripts of the alphabet, such as Cyrillic, Latin; none: all"
    )
    foreign_share: Share = Field(
        default=0.3, description="A document with a greater share of foreign letters is dropped"
    )
    foreign_line_share: Share = Field(
        default=0.5, description="A line with a greater share of foreign letters is taken out"
    )
    foreign_letters: Literal["remove", "keep"] = Field(default="remove", description="What else is foreign")

    @field_validator("scripts")
    @classmethod
    def _known(cls, scripts: list[str]) -> list[str]:
        return list(map(known_script, scripts))


class Filters(Section):
    """Which documents are dropped as badly formatted, judged after cleaning; `null` turns a limit off."""

    min_characters: int | None = Field(default=200, ge=1)
    max_characters: int | None = Field(default=None, ge=1)
    min_words: int | None = Field(default=50, ge=1)
    max_words: int | None = Field(default=None, ge=1)
    min_word_length: float | None = Field(default=None, gt=0, description="Mean, in characters")
    max_word_length: float | None = Field(default=None, gt=0, description="Mean, in characters")
    min_letters: Share | None = Field(default=0.6, description="Share of letters among characters that are no space")
    min_words_with_letters: Share | None = Field(default=0.8, description="Share of words that hold a letter")
    max_line: int | None = Field(default=100_000, ge=1, description="Longest line, in characters")
    max_symbols: Share | None = Field(default=0.1, description="Hashes, or ellipses, for each word")
    max_bullet_lines: Share | None = Field(default=0.9, description="Share of lines that begin with a bullet")
    max_cut_lines: Share | None = Field(default=0.3, description="Share of lines that end with an ellipsis")
    max_repeated_lines: Share | None = Field(default=0.3, description="Share of lines, and of paragraphs, met before")
    max_repeated_line_characters: Share | None = Field(default=0.2, description="The same in characters")
    max_repeated_ngrams: dict[Annotated[int, Field(ge=1)], Share] = Field(
        default={5: 0.5, 10: 0.35},
        description="Length in words -> share of words inside runs of that length met before",
    )
    stop_words: list[str] = Field(default_factory=list, description="Frequent words of the language")
    min_stop_words: int = Field(default=2, ge=0, description="How many different ones of these a document must hold")


class Deduplicate(Section):
    """MinHash-LSH: documents that share most runs of words are duplicates, and the first of them is kept."""

    ngram: int = Field(default=5, ge=1, description="Words in a run")
    buckets: int = Field(default=14, ge=1)
    hashes: int = Field(default=8, ge=1, description="Hashes in a bucket: two documents match if one bucket is equal")


class Decontaminate(Section):
    """Documents that hold runs of words of given texts are dropped."""

    against: Sources = Field(description="Text sources, such as a benchmark; of rows, all strings in them")
    ngram: int = Field(default=13, ge=2, description="Words in a run, lower-cased and without punctuation")
    hits: int = Field(default=1, ge=1, description="So many runs drop a document")


class Executor(Section):
    """Where it runs: processes here, Slurm jobs, or tasks of a Ray cluster; the result is the same."""

    kind: Literal["local", "slurm", "ray"] = "local"
    workers: int | None = Field(
        default=None, ge=1, description="Tasks at once; default: processors here, or no limit on Slurm"
    )
    tasks: int | None = Field(
        default=None, ge=1, description="slurm: parts that the cleaned text is divided into for its jobs"
    )
    cpus_per_task: int = Field(default=1, ge=1)
    memory_gb: float = Field(default=2, gt=0, description="slurm, ray: memory for each task")
    partition: str | None = Field(default=None, description="slurm: partition to run in")
    time: str = Field(default="24:00:00", description="slurm: time limit of a job")
    qos: str | None = None
    environment: str | None = Field(
        default=None, description="slurm: shell command before each job, such as source .../activate"
    )
    sbatch: dict[str, str] = Field(default_factory=dict, description="slurm: further options of sbatch")
    address: str | None = Field(default=None, description="ray: address of a running cluster; default: start one here")

    @model_validator(mode="after")
    def _whole(self) -> "Executor":
        if self.kind == "slurm" and self.partition is None:
            raise ValueError("kind slurm needs `partition`")
        return self


class CorpusSettings(Section):
    """One corpus from raw text to text for training."""

    output: Path = Field(default=Path("runs/corpus"), description="Folder to write")
    seed: int = Field(default=1, ge=0)
    on_error: Literal["stop", "skip"] = Field(default="stop", description="What to do with damaged rows and files")
    compression: Literal["zst", "gz"] = "zst"
    sources: dict[Annotated[str, Field(pattern=NAME)], Source] = Field(
        min_length=1, description="In the order of their worth: of duplicates the first is kept"
    )
    clean: Clean = Field(default_factory=Clean)
    filters: Filters = Field(default_factory=Filters)
    deduplicate: Annotated[Deduplicate | None, BeforeValidator(_off)] = Field(default_factory=Deduplicate)
    decontaminate: Annotated[Decontaminate | None, BeforeValidator(_off)] = None
    executor: Executor = Field(default_factory=Executor)


def read_corpus_settings(path: str | Path) -> CorpusSettings:
    """Read and validate a corpus file."""
    return read_settings(path, CorpusSettings, "corpus file", "corpus_ru")
