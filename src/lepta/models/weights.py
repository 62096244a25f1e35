"""How many weights a model has and where, from the headers of its files alone."""

import math
from pathlib import Path

from lepta.core.errors import explained
from lepta.models.folder import Checkpoint
from lepta.models.schema import REMEDY
from lepta.vocabulary.budget import Weights
from lepta.vocabulary.gguf_tokenizer import read_gguf_header


def count_weights(model: Path) -> Weights:
    """Count the weights of a Hugging Face folder or a GGUF file."""
    if model.suffix == ".gguf":
        shapes = read_gguf_header(model).shapes
        with explained(model, "not a GGUF file of a language model", REMEDY):
            width, rows = shapes["token_embd.weight"]
        body = sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith(("token_embd", "output.")))
        return Weights(body, width, rows, 2 if "output.weight" in shapes else 1)
    checkpoint = Checkpoint(model)
    rows, width = checkpoint.entries[checkpoint.input_name].shape
    names = checkpoint.embedding_names
    body = sum(math.prod(entry.shape) for name, entry in checkpoint.entries.items() if name not in names)
    return Weights(body, width, rows, len(names))
