"""A vocabulary whose least useful tokens gave their ids to new ones, through all stages."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lepta.distillation.settings import DistillSettings
from lepta.embeddings.initialise import initialise
from lepta.embeddings.patch import apply_patch, export_patch
from lepta.embeddings.propagate import propagate
from lepta.learning import distill, pretrain
from lepta.text.settings import Language, Text
from lepta.training.settings import PretrainSettings
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.change import VocabularyChange


def test_a_vocabulary_with_replaced_tokens_goes_the_whole_way(tiny_tokenizer, tiny_model_folder, tmp_path):
    """Kept rows stay where they are, bit for bit, and the variant has its own."""
    base = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)
    variant = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lepta.vocabulary.merges.OCCURRENCES", 50_000)
        built = build_vocabulary(
            tiny_tokenizer, ["starter:ru/valid"], "replaced", add=150, keep_text=["starter:en/train"], most_changed=1
        )
    ids = VocabularyChange.between(tiny_tokenizer.vocabulary(), built.vocabulary()).new_ids
    kept = np.setdiff1d(np.arange(4000), ids)
    assert kept[-1] > ids[0]  # new rows stand among old ones
    folders = {
        name: tmp_path / name for name in ("initialised", "distilled", "pretrained", "propagated", "patch", "again")
    }
    for folder in folders.values():
        folder.mkdir()
    initialise(base, built, folders["initialised"])
    text = Text.model_construct(
        target=Language.model_construct(language="ru", train=["starter:ru/train"], valid=[]),
        source=Language.model_construct(language="en", train=[], valid=[]),
    )
    distilling = DistillSettings.model_validate({"tokens": 2000, "batch": 2, "passage": 100, "rows": "new-rows"})
    distill(base, folders["initialised"], text, distilling, 1, folders["distilled"])
    training = {"trains": "new-rows", "tokens": 2000, "block": 64, "batch": 2, "learning_rate": 1e-2}
    pretrain(base, folders["distilled"], text, PretrainSettings.model_validate(training), 1, folders["pretrained"])
    propagate(base, folders["pretrained"], [(variant, folders["propagated"])])
    export_patch(base, folders["pretrained"], folders["patch"])
    apply_patch(folders["patch"], base, folders["again"])
    for start, result in ((base, "initialised"), (base, "distilled"), (base, "pretrained"), (variant, "propagated")):
        before, after = (load_file(folder / "model.safetensors") for folder in (start, folders[result]))
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert after[name].shape == before[name].shape
            rounding = 1e-7 if result == "propagated" else 0.0  # of the change that is mapped: none here
            torch.testing.assert_close(after[name][kept], before[name][kept], rtol=0, atol=rounding)
            assert (after[name][ids] != before[name][ids]).any(dim=1).all()
    files = (folders[name] / "model.safetensors" for name in ("pretrained", "again"))
    assert len({file.read_bytes() for file in files}) == 1
