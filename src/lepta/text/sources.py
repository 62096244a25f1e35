"""Text in: files, folders, JSONL and word statistics become streams of documents.

A text source is one of

    path/to/file.txt            one document
    path/to/file.jsonl          one document a line; also .jsonl.gz and .jsonl.zst
    path/to/file.parquet        one document a row
    path/to/folder              every such file below it, in sorted order; what is hidden (".name") does not count
    darumeru:builtin            the benchmark's own items (to keep them out of a corpus)
    starter:ru/train            the starter corpus that comes with the package
    dataset:NAME/OR/PATH        a split of a dataset, streamed by the `datasets` package; options after "?":
                                dataset:wikimedia/wikipedia@REVISION?name=20231101.ru&split=train&field=text
    wordfreq:ru                 word statistics of the wordfreq package (for vocabularies only)

Text is in the field "text" of a row, or in the one named behind the file or folder: path/to/file.parquet?field=content
"""

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from lepta.core.errors import LeptaError, optional
from lepta.core.reading import expanded, is_there
from lepta.core.shipped import PACKAGE
from lepta.text.formats import ROW_SUFFIXES, Row, decode, no_field, read_rows, stop
from lepta.text.locate import hub_fault

TEXT_SUFFIXES = (".txt", *ROW_SUFFIXES)
FIELD = "text"
WORDFREQ = "wordfreq:"
STARTER = "starter:"
DATASET = "dataset:"
# What reading needs beside LEPTA itself, by prefix or suffix of a source: package, and the extra that installs it.
PACKAGES = {
    WORDFREQ: ("wordfreq", "wordfreq"),
    DATASET: ("datasets", "datasets"),
    ".parquet": ("pyarrow", "corpus"),
    ".zst": ("zstandard", "corpus"),
}
BENCHMARK = "darumeru:builtin"
BUILTIN_ITEMS = PACKAGE / "data" / "darumeru"
# Enough for any vocabulary worth adding (they hold 94 % of running Russian); all 713,000 take five times as long.
FREQUENT_WORDS = 100_000
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
LONGEST_PIECE = 1 << 23  # bytes of a text file held at once


def is_word_list(source: str) -> bool:
    """Tell whether a source holds word statistics rather than running text."""
    return source.startswith(WORDFREQ)


def text_field(source: str, field: str = FIELD) -> tuple[str, str]:
    """Split a text source into its place and the field of its rows that holds the text: `field` if it names none."""
    if source.startswith(DATASET) or is_there(source):
        return source, field
    place, _, query = source.partition("?")
    return place, _options(source, query, ("field",)).get("field", field)


def _options(source: str, query: str, known: tuple[str, ...]) -> dict[str, str]:
    """Options behind the "?" of a text source; LeptaError if one is unknown or empty."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := set(options) - set(known):
        verb = "is" if len(known) == 1 else "are"
        raise LeptaError(f"{source}: unknown option {min(unknown)!r}; known {verb} {', '.join(known)}")
    if empty := [name for name, value in options.items() if not value]:
        raise LeptaError(f"{source}: the option {empty[0]!r} is empty; expected {empty[0]}=VALUE")
    return options


def text_files(source: str) -> list[Path]:
    """List the files behind one text source, in a fixed order."""
    place, _ = text_field(source)
    if not place:  # Path("") is the current folder, which nobody named
        raise LeptaError(f"{source!r}: an empty text source; name a file or folder")
    path = _path_of(place)
    if path.is_dir():
        files = []
        for place_inside, folders, names in os.walk(path):  # what vanishes meanwhile, as in /proc, is passed over
            folders[:] = [name for name in folders if not name.startswith(".")]
            found = [Path(place_inside) / name for name in names if not name.startswith(".")]
            files += [file for file in found if file.name.endswith(TEXT_SUFFIXES) and file.is_file()]
        files.sort()
        if not files:
            raise LeptaError(f"{path}: no text here; expected files ending in {', '.join(TEXT_SUFFIXES)}")
        return files
    if not path.is_file():
        raise LeptaError(
            f"{source}: no such file or folder; to try things out the package has {STARTER}ru/train (text) and "
            f"{STARTER}dialogues/train.jsonl (conversations)"
        )
    if not path.name.endswith(TEXT_SUFFIXES):
        raise LeptaError(f"{path}: unknown type of text file; expected one ending in {', '.join(TEXT_SUFFIXES)}")
    return [path]


def _path_of(place: str) -> Path:
    if place.startswith(STARTER):
        return starter_path(place.removeprefix(STARTER))
    if place == BENCHMARK:
        return BUILTIN_ITEMS
    return expanded(place)


def starter_path(relative: str) -> Path:
    """Locate a file or folder of the starter corpus that comes with the package."""
    root = PACKAGE / "data" / "starter"
    path = root / relative
    # An absolute name replaces the root, and ".." leaves it.
    if not path.resolve().is_relative_to(root.resolve()) or not path.exists():
        raise LeptaError(
            f"{STARTER}{relative}: not in the starter corpus; it has ru/, en/ (train, valid) and dialogues/"
        )
    return path


@dataclass(frozen=True)
class Document:
    """A text and where it is from."""

    text: str
    source: str  # kind of text: the row's field `source`, else the name of the file; of a .txt file, that of its folder
    name: str  # the work that it is a piece of: the row's field `doc`, else file and line


def read_documents(sources: Iterable[str]) -> Iterator[str]:
    """Stream the texts of several text sources; see `read_labelled`."""
    return (document.text for document in read_labelled(sources))


def read_labelled(sources: Iterable[str]) -> Iterator[Document]:
    """Stream the documents of several text sources; LeptaError also if there is no text at all."""
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
        yield from read_dataset(source)
        return
    _, field = text_field(source)
    for file in text_files(source):
        for document, _ in read_file(file, field):
            yield document


def read_dataset(source: str, field: str = FIELD) -> Iterator[Document]:
    """Stream a split of a dataset: Parquet, JSON, CSV or text in a folder, or a dataset of the hub.

    `field` holds the text, if the source names no other.
    """
    with optional(source, "datasets"):
        import datasets
    place, _, query = source.removeprefix(DATASET).partition("?")
    options = _options(source, query, ("name", "split", "field"))
    field = options.get("field", field)
    path, _, revision = place.partition("@")
    try:
        rows = datasets.load_dataset(
            path, options.get("name"), split=options.get("split", "train"), revision=revision or None, streaming=True
        )
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get(field), str):
                raise LeptaError(f"{source}, row {number}: no text in field {field!r}; it has {', '.join(row)}")
            yield Document(row[field], str(row.get("source", path)), str(row.get("doc", number)))
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise LeptaError(f"{source}: {hub_fault(error)}") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise LeptaError(f"{source}: cannot be read as a dataset ({error}); check name and split") from error


def read_file(
    file: Path, field: str = FIELD, bad: Callable[[LeptaError], None] = stop
) -> Iterator[tuple[Document, int]]:
    """Stream the documents of one file, empty ones too, with the bytes of the file that were read so far.

    A null in `field` is an empty document. `bad` is told of what is damaged, as in `read_rows`.
    """
    if not file.name.endswith(".txt"):
        for row in read_rows(file, field, bad):
            try:
                document = _document(row, file, field)
            except LeptaError as error:
                bad(error)
            else:
                yield document, row.position
        return
    position = 0
    try:
        for piece in _pieces(file):
            position += len(piece.encode())
            yield Document(piece, "/".join(file.absolute().parts[-3:-1]), file.name), position
    except LeptaError as error:
        bad(error)


def _pieces(file: Path) -> Iterator[str]:
    """A text file whole, or in pieces that end with a line if it is long."""
    with file.open("rb") as text:
        start = 0
        while data := text.read(LONGEST_PIECE):
            data += text.readline()
            yield decode(data, str(file), start)
            start += len(data)


def _document(row: Row, file: Path, field: str) -> Document:
    text = row.value.get(field, 0)
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise no_field(row.where, field, list(row.value))
    if LONE_SURROGATE.search(text):
        raise LeptaError(
            f"{row.where}: half of a UTF-16 pair, which is no character; write the text anew from its source"
        )
    source, name = row.value.get("source"), row.value.get("doc")
    return Document(
        text,
        file.name if source is None else str(source),
        f"{file.name}#{row.number}" if name is None else str(name),
    )


def check_source(source: str) -> None:
    """Find what reading a source needs, without reading it; LeptaError if a file or a package is missing."""
    if source.startswith((WORDFREQ, DATASET)):
        _check_package(source, source[: source.index(":") + 1])
        return
    for file in text_files(source):
        _check_package(file, file.suffix)


def _check_package(source: object, mark: str) -> None:
    package, extra = PACKAGES.get(mark, ("", ""))
    if package and importlib.util.find_spec(package) is None:
        raise LeptaError(f"{source}: the package {package} is missing; pip install 'lepta[{extra}]'")


def word_frequencies(source: str) -> dict[str, float]:
    """Read the most frequent words of a language, as `wordfreq` has measured them over many kinds of text.

    Each word (lower case) comes with its share of all words, the most frequent first.
    """
    language = source.removeprefix(WORDFREQ)
    with optional(source, "wordfreq"):
        import wordfreq
    known = sorted(wordfreq.available_languages())
    if language not in known:  # wordfreq itself would give the nearest language it has, Russian for Belarusian
        raise LeptaError(f"{source}: wordfreq has no language {language!r}; it has {', '.join(known)}")
    words = wordfreq.top_n_list(language, FREQUENT_WORDS, wordlist="best")
    try:
        return {word: wordfreq.word_frequency(word, language) for word in words}
    except ModuleNotFoundError as error:  # it splits Chinese, Japanese and Korean with packages of their own
        raise LeptaError(
            f"{source}: wordfreq needs the package {error.name} for it; pip install {error.name}"
        ) from error


def dialogue_file(source: str) -> Path:
    """Locate a file of conversations."""
    path = _path_of(source)
    if not path.is_file():
        raise LeptaError(f"{source}: no such file; expected a file of conversations, a row each")
    return path
