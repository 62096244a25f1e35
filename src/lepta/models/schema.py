"""What is read of model folders, as pydantic models: the gate that all of them pass before transformers sees them."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from lepta.vocabulary.schema import Flag

MOST_LAYERS = 10_000
LARGEST = 1 << 24  # of a field that sizes something: transformers builds lists and tensors so long before it looks
SIZES = re.compile(r"(num|n)_\w+|d_model|\w+_(size|sizes|heads|dim|experts|head|embd)")
LAYERS = re.compile(r"(\w+_)?(layers?|depth)")  # each is built; num_hidden_layers has other names in some families
REMEDY = "copy or download it again"


class ModelConfig(BaseModel):
    """A `config.json`, or one inside it; what else is in it transformers judges."""

    model_type: Annotated[str, Field(max_length=100)] | None = None
    architectures: list[str] | None = None
    auto_map: dict[str, Any] | None = None
    tie_word_embeddings: Flag | None = None
    num_hidden_layers: Annotated[int, Field(strict=True, ge=0, le=MOST_LAYERS)] | None = None
    hidden_size: Annotated[int, Field(strict=True, ge=1, le=LARGEST)] | None = None
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=LARGEST)] | None = None
    text_config: "ModelConfig | None" = None

    @model_validator(mode="before")
    @classmethod
    def _sizes(cls, fields: Any) -> Any:
        for name, value in fields.items() if isinstance(fields, dict) else ():
            if not isinstance(value, int):
                continue
            for names, most in ((LAYERS, MOST_LAYERS), (SIZES, LARGEST)):
                if abs(value) > most and names.fullmatch(name):
                    raise ValueError(f"{name} is {str(value)[:20]}; expected at most {most:,}")
        return fields


class Index(BaseModel):
    """A `model.safetensors.index.json`."""

    weight_map: dict[str, Annotated[str, Field(min_length=1, max_length=255)]] = Field(min_length=1)
