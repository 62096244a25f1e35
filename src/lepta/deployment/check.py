"""`lepta check`: which programs run a finished model folder, from LEPTA or anywhere, and what is left to do for them.

check_model(Path("my/adapted"))
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lepta.core.errors import LeptaError, reason_of
from lepta.core.machine import versions_of
from lepta.core.output import DEPLOYMENT, MANIFEST, write_json
from lepta.deployment.consumers import CONSUMERS, Deployed, Verdict
from lepta.models.folder import Checkpoint
from lepta.version import __version__
from lepta.vocabulary.source import open_tokenizer


@dataclass(frozen=True)
class Deployment:
    """The verdicts on one folder, and what they are about."""

    facts: dict[str, Any]
    verdicts: dict[str, Verdict]  # by the name of the consumer

    @property
    def failed(self) -> list[str]:
        """Consumers that cannot run it."""
        return [name for name, verdict in self.verdicts.items() if verdict.status == "fails"]

    def as_json(self) -> dict[str, Any]:
        """What `deployment.json` holds."""
        return {
            "lepta": __version__,
            "asked_here": versions_of("transformers", "tokenizers", "sentencepiece"),
            "model": self.facts,
            "consumers": [{"consumer": name, **asdict(verdict)} for name, verdict in self.verdicts.items()],
        }


def check_model(checkpoint: Checkpoint, consumers: Sequence[str] = (), draft: str | Path | None = None) -> Deployment:
    """Judge a model folder for some consumers (names in `CONSUMERS`, or their titles), or for all of them.

    `draft` is a model or tokenizer that is to draft for it. LeptaError if a consumer is not known, or the folder's
    tokenizer or config cannot be read.
    """
    named = CONSUMERS | {consumer.title.lower(): consumer for consumer in CONSUMERS.values()}
    asked = []
    for name in consumers or CONSUMERS:
        if name.lower() not in named:
            raise LeptaError(f"--consumer {name}: unknown; known are {', '.join(CONSUMERS)}")
        asked.append(named[name.lower()])
    model = Deployed(checkpoint, open_tokenizer(checkpoint.folder), open_tokenizer(draft) if draft else None)
    facts = {
        "type": checkpoint.config.get("model_type"),
        "family": model.vocabulary.family,
        "ids": model.vocabulary.size,
        "rows": checkpoint.rows,
        "tied": checkpoint.tied,
    }
    return Deployment(facts, {consumer.title: consumer.verdict(model) for consumer in asked})


def write_deployment(deployment: Deployment, file: Path) -> None:
    """Write `deployment.json`, under that name into the model folder itself, where no content hash counts it."""
    if (file.parent / MANIFEST).is_file() and file.name != DEPLOYMENT:
        raise LeptaError(
            f"{file}: {file.parent} has a {MANIFEST} with hashes of all its files; expected the name {DEPLOYMENT}, or "
            "another folder"
        )
    if file.exists() and file.name != DEPLOYMENT:
        raise LeptaError(f"{file}: exists already; expected a new file, or the name {DEPLOYMENT}, which is replaced")
    try:
        write_json(file, deployment.as_json())
    except OSError as error:
        raise LeptaError(f"{file}: cannot be written ({reason_of(error)}); give another --output") from error
