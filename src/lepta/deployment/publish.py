"""`lepta publish`: a model folder to the hub, in one commit, with its card. A dry run needs no network.

Only files that a model needs go along; `manifest.json` goes without the places on this machine that it names.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lepta.card import FRONT_MATTER, PATCH, front_matter, is_model, unique
from lepta.core.errors import LeptaError
from lepta.core.output import CARD, MANIFEST
from lepta.core.reading import is_there, read_json, read_utf8
from lepta.core.settings import as_list

PUBLISHED = (
    *("*.safetensors", "*.json", "*.jinja", "additional_chat_templates/*.jinja", "tokenizer.model", "*.gguf", CARD),
    *("LICENSE*", "NOTICE*"),
)
THIS_FOLDER = "THIS_FOLDER"  # in a card: the name that the model will have
GGUF_FACTS = ".gguf.json"  # beside a GGUF file: what was compared
ABSOLUTE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")
LANGUAGE = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True)
class Publication:
    """What would go to the hub."""

    repo: str
    files: dict[str, Path | bytes]  # name there -> file, or contents that differ from the file here
    left_out: list[str]  # files of the folder that stay here
    warnings: list[str]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: _size(file) for name, file in self.files.items()}

    @property
    def card(self) -> str:
        """The card as it goes."""
        card = self.files.get(CARD, b"")
        return card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8")


def prepare(folder: Path, repo: str, base_model: str | None = None, languages: Sequence[str] = ()) -> Publication:
    """Collect what would be published as `repo` (OWNER/NAME).

    `base_model` is for the card, if that names none; `languages` (ISO 639) are named before those that it names.
    LeptaError if the name is none of the hub's, or the folder holds neither a model nor a vocabulary patch.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise LeptaError(f"--repo {repo}: not a name for the hub; expected OWNER/NAME") from error
    if "/" not in repo:
        raise LeptaError(f"--repo {repo}: expected OWNER/NAME")
    for language in languages:
        if not LANGUAGE.fullmatch(language):
            raise LeptaError(f"--language {language}: expected a code of ISO 639, such as ru or kk")
    if not folder.is_dir():
        raise LeptaError(f"{folder}: no such folder; expected one with a model or a vocabulary patch")
    if not is_model(folder) and not (folder / PATCH).is_file():
        raise LeptaError(f"{folder}: no model to publish; expected config.json and safetensors, or a vocabulary patch")
    files: dict[str, Path | bytes] = {file.relative_to(folder).as_posix(): file for file in _published(folder)}
    for name in files:
        if name == MANIFEST or name.endswith(GGUF_FACTS):
            files[name] = _without_places(folder / name)
    if CARD in files:
        files[CARD] = _card(folder, repo, base_model, languages).encode()
    all_files = (file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file())
    left_out = [name for name in all_files if name not in files]
    return Publication(repo, dict(sorted(files.items())), left_out, _missing(folder, base_model, languages))


def _published(folder: Path) -> Iterator[Path]:
    """Files that go along; LeptaError for a link out of the folder, which could send anything of this machine."""
    root = folder.resolve()
    if root.parent.name == "snapshots":  # of the hub's cache, whose files are links to blobs beside it
        root = root.parents[1]
    for pattern in PUBLISHED:
        for file in folder.glob(pattern):
            if not file.is_file() or file.name.startswith("."):
                continue
            if not file.resolve().is_relative_to(root):
                raise LeptaError(f"{file}: a link out of the folder; expected a file (copy what it points to)")
            yield file


def _size(file: Path | bytes) -> int:
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def _without_places(file: Path) -> bytes:
    """A file of facts with names instead of places on this machine, wherever in it they are."""
    return (json.dumps(_named(read_json(file)), ensure_ascii=False, indent=2) + "\n").encode()


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _named(part) for key, part in value.items()}
    if isinstance(value, list):
        return list(map(_named, value))
    if isinstance(value, str) and (ABSOLUTE.match(value) or is_there(value)):  # the place may be gone by now
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _card(folder: Path, repo: str, base_model: str | None, languages: Sequence[str]) -> str:
    text = read_utf8(folder / CARD).replace(THIS_FOLDER, repo)
    facts, added = front_matter(folder), dict[str, Any]()
    if base_model and "base_model" not in facts:
        added = {"base_model": base_model, "base_model_relation": "finetune"}
    if languages:
        added["language"] = unique([*languages, *as_list(facts.get("language") or [])])
    if not added:
        return text
    facts |= added
    head = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n" + FRONT_MATTER.sub("", text)


def _missing(folder: Path, base_model: str | None, languages: Sequence[str]) -> list[str]:
    """What a reader of the hub would miss."""
    if not (folder / CARD).is_file():
        return [f"no card: there is no {CARD}"]
    facts, warnings = front_matter(folder), []
    if str(facts.get("license", "unknown")) == "unknown":
        warnings.append(f"the card names no licence: write `license:` into {CARD}")
    if "base_model" not in facts and base_model is None:
        warnings.append("the card names no base model: give --base-model OWNER/NAME")
    if not facts.get("language") and not languages:
        warnings.append("the card names no language: give --language CODE, such as ru")
    return warnings


def publish(publication: Publication, private: bool = False) -> str:
    """Make the repository if it is not there, and put all files into it in one commit; returns its address.

    The token is that of `hf auth login` or `HF_TOKEN`. LeptaError if there is none, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        address = api.create_repo(publication.repo, private=private, repo_type="model", exist_ok=True, token=True)
        operations = [CommitOperationAdd(name, file) for name, file in publication.files.items()]
        api.create_commit(publication.repo, operations, commit_message="Upload model", token=True)
    except LocalTokenNotFoundError as error:
        raise LeptaError("publish: no token for the hub; run `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise LeptaError("publish: HF_HUB_OFFLINE is set; unset it, or give --dry-run") from error
    except HfHubHTTPError as error:  # its own text may repeat what was sent
        status = error.response.status_code
        hint = "is the token allowed to write there?" if status in (401, 403, 404) else "try again later"
        raise LeptaError(f"publish {publication.repo}: the hub answers {status}; {hint}") from error
    except Exception as error:  # the client below is httpx or another, by the version of huggingface_hub
        raise LeptaError(f"publish {publication.repo}: the hub did not take it ({type(error).__name__})") from error
    return str(address)
