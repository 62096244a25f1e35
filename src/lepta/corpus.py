"""Text in: files, folders, JSONL and word statistics become streams of documents.

A text source is one of

    path/to/file.txt            one document
    path/to/file.jsonl[.gz]     one document a line, field "text"
    path/to/folder              every .txt, .jsonl and .jsonl.gz below it, in sorted order
    starter:ru/train            the starter corpus that comes with the package
    dataset:NAME/OR/PATH        a split of a dataset, streamed by the `datasets` package; options after "?":
                                dataset:wikimedia/wikipedia@REVISION?name=20231101.ru&split=train&field=text
    wordfreq:ru                 word statistics of the wordfreq package (for vocabularies only)
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qsl

from lepta.errors import LeptaError

TEXT_SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")
WORDFREQ = "wordfreq:"
STARTER = "starter:"
DATASET = "dataset:"
# Enough for any vocabulary worth adding (they hold 94 % of running Russian); all 713,000 take five times as long.
FREQUENT_WORDS = 100_000
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
LONGEST_PIECE = 1 << 23  # bytes of a text file held at once


def is_word_list(source: str) -> bool:
    """Tell whether a source holds word statistics rather than running text."""
    return source.startswith(WORDFREQ)


def text_files(source: str) -> list[Path]:
    """List the files behind one text source, in a fixed order.

    Raises
    ------
    LeptaError
        If the source does not exist, has no text in it, or is of an unknown type.
    """
    path = starter_path(source.removeprefix(STARTER)) if source.startswith(STARTER) else Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(TEXT_SUFFIXES) and file.is_file())
        if not files:
            raise LeptaError(f"{path}: no text here; expected files ending in {', '.join(TEXT_SUFFIXES)}")
        return files
    if not path.is_file():
        raise LeptaError(f"{source}: no such file or folder; give text as a file, a folder or {STARTER}LANGUAGE/train")
    if not path.name.endswith(TEXT_SUFFIXES):
        raise LeptaError(f"{path}: unknown type of text file; expected one ending in {', '.join(TEXT_SUFFIXES)}")
    return [path]


def starter_path(relative: str) -> Path:
    """Locate a file or folder of the starter corpus that comes with the package."""
    path = Path(str(resources.files("lepta"))) / "data" / "starter" / relative
    if not path.exists():
        raise LeptaError(
            f"{STARTER}{relative}: not in the starter corpus; it has ru/, en/ (train, valid) and dialogues/"
        )
    return path


@dataclass(frozen=True)
class Document:
    """A text and where it is from.

    Attributes
    ----------
    text : str
    source : str
        Kind of text: the row's field `source`, else the name of the file; of a .txt file, that of its folder.
    name : str
        The work that it is a piece of: the row's field `doc`, else file and line.
    """

    text: str
    source: str
    name: str


def read_documents(sources: Iterable[str]) -> Iterator[str]:
    """Stream the texts of several text sources; see `read_labelled`."""
    return (document.text for document in read_labelled(sources))


def read_labelled(sources: Iterable[str]) -> Iterator[Document]:
    """Stream the documents of several text sources.

    Raises
    ------
    LeptaError
        On invalid UTF-8 (naming the byte), broken JSON or gzip (naming the line), or if there is no text at all.
    """
    sources = list(sources)
    found = False
    for source in sources:
        for document in _stream(source):
            if document.text.strip():
                found = True
                yield document
    if not found:
        raise LeptaError(f"{', '.join(sources) or 'corpus'}: no text; expected at least one document that is not empty")


def _stream(source: str) -> Iterator[Document]:
    if source.startswith(DATASET):
        yield from _dataset(source)
        return
    for file in text_files(source):
        yield from _documents_of(file)


def _dataset(source: str) -> Iterator[Document]:
    """Stream a split of a dataset: Parquet, JSON, CSV or text in a folder, or a dataset of the hub."""
    try:
        import datasets
    except ImportError as error:
        raise LeptaError(f"{source}: the package datasets is missing; pip install 'lepta[datasets]'") from error
    place, _, query = source.removeprefix(DATASET).partition("?")
    options = dict(parse_qsl(query))
    field = options.pop("field", "text")
    if unknown := set(options) - {"name", "split"}:
        raise LeptaError(f"{source}: unknown option {min(unknown)!r}; known are name, split, field")
    path, _, revision = place.partition("@")
    try:
        rows = datasets.load_dataset(
            path, options.get("name"), split=options.get("split", "train"), revision=revision or None, streaming=True
        )
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get(field), str):
                raise LeptaError(f"{source}, row {number}: no text in field {field!r}; it has {', '.join(row)}")
            yield Document(row[field], str(row.get("source", path)), str(row.get("doc", number)))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise LeptaError(f"{source}: cannot be read as a dataset ({error}); check name and split") from error


def _documents_of(file: Path) -> Iterator[Document]:
    if file.name.endswith(".txt"):
        for piece in _pieces(file):
            yield Document(piece, "/".join(file.absolute().parts[-3:-1]), file.name)
        return
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _row(line, file, number)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LeptaError(f"{file}: not a whole gzip file ({error}); copy it again") from error


def _pieces(file: Path) -> Iterator[str]:
    """A text file whole, or in pieces that end with a line if it is long."""
    with file.open("rb") as text:
        start = 0
        while data := text.read(LONGEST_PIECE):
            data += text.readline()
            yield _decode(data, str(file), start)
            start += len(data)


def _decode(data: bytes, where: str, start: int = 0) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LeptaError(
            f"{where}: byte {start + error.start} is not UTF-8; convert the text first, for example "
            "iconv -f WINDOWS-1251 -t UTF-8"
        ) from error


def _row(line: bytes, file: Path, number: int) -> Document:
    where = f"{file}, line {number}"
    try:
        row = json.loads(_decode(line, where))
    except json.JSONDecodeError as error:
        raise LeptaError(f"{where}: not JSON ({error.msg}); expected one object a line with a field 'text'") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise LeptaError(f"{where}: no text field; expected an object with a string field 'text'")
    if LONE_SURROGATE.search(row["text"]):
        raise LeptaError(f"{where}: half of a UTF-16 pair, which is no character; write the text anew from its source")
    return Document(row["text"], str(row.get("source", file.name)), str(row.get("doc", f"{file.name}#{number}")))


def word_frequencies(source: str) -> dict[str, float]:
    """Read the share of the most frequent words of a language, as `wordfreq` has measured it over many kinds of text.

    Returns
    -------
    dict
        Word (lower case) -> share of all words, most frequent first.
    """
    language = source.removeprefix(WORDFREQ)
    try:
        import wordfreq
    except ImportError as error:
        raise LeptaError(f"{source}: the package wordfreq is missing; pip install 'lepta[wordfreq]'") from error
    known = sorted(wordfreq.available_languages())
    if language not in known:  # wordfreq itself would give the nearest language it has, Russian for Belarusian
        raise LeptaError(f"{source}: wordfreq has no language {language!r}; it has {', '.join(known)}")
    words = wordfreq.top_n_list(language, FREQUENT_WORDS, wordlist="best")
    return {word: wordfreq.word_frequency(word, language) for word in words}


def dialogue_file(source: str) -> Path:
    """Locate a file of conversations."""
    path = starter_path(source.removeprefix(STARTER)) if source.startswith(STARTER) else Path(source).expanduser()
    if not path.is_file():
        raise LeptaError(f"{source}: no such file; expected a JSONL file with one conversation a line")
    return path


def read_dialogues(source: str) -> list[list[dict[str, str]]]:
    """Read conversations in the chat format of the field: one object a line, {"messages": [{"role", "content"}]}.

    Raises
    ------
    LeptaError
        If a line is not such an object, or a conversation does not end with the assistant's turn.
    """
    path = dialogue_file(source)
    dialogues = []
    for number, line in enumerate(_decode(path.read_bytes(), str(path)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            messages = json.loads(line)["messages"]
            roles = [message["role"] for message in messages if isinstance(message["content"], str)]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise LeptaError(
                f'{path}, line {number}: expected {{"messages": [{{"role": ..., "content": ...}}, ...]}} ({error})'
            ) from error
        if len(roles) != len(messages) or not roles or roles[-1] != "assistant":
            raise LeptaError(f"{path}, line {number}: the conversation must end with an answer of role 'assistant'")
        dialogues.append(messages)
    if not dialogues:
        raise LeptaError(f"{path}: no conversation in it")
    return dialogues
