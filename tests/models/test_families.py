"""Families of models that are more than embeddings, layers and a head: the whole way, with tiny ones of each.

Multimodal wrappers, mixtures of experts, per-layer embeddings, multi-token prediction: initialised, trained in two ways
and propagated, they load without a missing tensor and say the same as before on text in old tokens.
"""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from lepta.core.errors import LeptaError
from lepta.distillation.distill import distill_folder
from lepta.distillation.settings import DistillSettings
from lepta.embeddings.initialise import initialise
from lepta.embeddings.propagate import propagate
from lepta.models.folder import Checkpoint
from lepta.models.language_model import class_for
from lepta.pipeline import pipeline_of
from lepta.plan.shapes import shape_of
from lepta.recipe import Recipe
from lepta.training.blocks import TrainingText
from lepta.training.pretrain import HeldOut, pretrain_folder
from lepta.training.settings import PretrainSettings
from lepta.training.trainable import make_trainable, unreached

ROWS, WIDTH = 4000, 32
TEXT = {
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,  # as many as the language model has: a list of layers of this length is not enough to go by
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
BLOCKS = {"depth": 2, "hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 4}
SEEN = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = EXPERTS | {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}
WITHOUT_HEAD_DIM = {key: value for key, value in TEXT.items() if key != "head_dim"}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
KIMI = {
    "num_hidden_layers": 4,  # the fourth is the first with full attention
    "num_experts": 4,
    "num_experts_per_token": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "num_shared_experts": 1,
    "linear_attn_config": {
        "kda_layers": [1, 2, 3],
        "full_attn_layers": [4],
        "head_dim": 8,
        "num_heads": 4,
        "short_conv_kernel_size": 4,
    },
}
LONGCAT = {
    "num_layers": 2,  # each with two attentions, so its config has four hidden layers
    "head_dim": 4,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "moe_topk": 2,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 64,
}
LINEAR = {
    "num_hidden_layers": 4,  # the fourth is the first with full attention
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
TABLES = {
    "vocab_size_per_layer_input": ROWS,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
}
MLLAMA = {
    "hidden_size": WIDTH,
    "attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_global_layers": 1,
    "image_size": 28,
    "patch_size": 14,
    "max_num_tiles": 2,
    "intermediate_layers_indices": [0],
    "vision_output_dim": 2 * WIDTH,
    "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
}
IMAGES = {"image_token_index": 3}
WRAPPERS = {
    "Llava": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": TOWER | {"model_type": "clip_vision_model"},
        **IMAGES,
    },
    "Qwen2VL": {
        "text_config": TEXT | ROPE,
        "vision_config": {"depth": 2, "embed_dim": WIDTH, "hidden_size": WIDTH},
        **SEEN,
    },
    "Qwen2_5_VL": {"text_config": TEXT | ROPE, "vision_config": BLOCKS | {"fullatt_block_indexes": [0]}, **SEEN},
    "Qwen3VL": {
        "text_config": TEXT | ROPE,
        "vision_config": BLOCKS | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        **SEEN,
    },
    "Qwen3_5": {"text_config": TEXT | LINEAR, "vision_config": BLOCKS | {"num_position_embeddings": 16}, **SEEN},
    "Gemma3": {
        "text_config": TEXT,
        "vision_config": TOWER | {"model_type": "siglip_vision_model"},
        **IMAGES,
        "boi_token_index": 4,
        "eoi_token_index": 5,
        "mm_tokens_per_image": 1,
    },
    "Mistral3": {
        "text_config": TEXT | {"model_type": "mistral"},
        "vision_config": TOWER | {"model_type": "pixtral", "head_dim": 8},
        **IMAGES,
    },
    "Mllama": {"text_config": TEXT | {"cross_attention_layers": [1]}, "vision_config": MLLAMA, **IMAGES},
}
TEXT_ONLY = {
    "Gemma3Text": TEXT,
    "Qwen3Moe": TEXT | EXPERTS | {"num_experts": 4, "decoder_sparse_step": 1},
    "GptOss": TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "DeepseekV3": WITHOUT_HEAD_DIM | ROUTED | LATENT,
    "Glm4Moe": TEXT | ROUTED,
    "Mixtral": TEXT | {"num_local_experts": 4},
    "KimiLinear": WITHOUT_HEAD_DIM | LATENT | KIMI,
    "LongcatFlash": WITHOUT_HEAD_DIM | LATENT | LONGCAT,
    "Phi3": WITHOUT_HEAD_DIM,
    "Gemma3nText": TEXT | TABLES | {"altup_num_inputs": 2, "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 2},
    "Gemma4Text": TEXT | TABLES | {"global_head_dim": 8},
    "Qwen3Next": TEXT | LINEAR | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16},
}
AFTER_LAST = (  # a layer after the last one, with both matrices again
    "model.layers.2.embed_tokens.weight",
    "model.layers.2.shared_head.head.weight",
    "model.layers.2.eh_proj.weight",
)
PREDICTION = {
    "DeepseekV3": AFTER_LAST,
    "Glm4Moe": AFTER_LAST,
    "Qwen3_5": ("mtp.embed_tokens.weight", "mtp.fc.weight"),
    "Qwen3Next": ("mtp.embed_tokens.weight", "mtp.fc.weight"),
}
WITH_EXPERTS = ("Qwen3Moe", "GptOss", "DeepseekV3", "Glm4Moe", "Qwen3Next", "Mixtral", "KimiLinear")
PROCESSOR = {
    "preprocessor_config.json": '{"image_mean": [0.5, 0.5, 0.5],  "patch_size": 14}',
    "processor_config.json": '{"image_token": "<image>"}',
    "chat_template.json": '{"chat_template": "{{ messages }}"}',
}
DOCUMENTS = ["Учитель читал детям длинную сказку о море, кораблях и ветре.\n" * 4, "Утром было тихо и светло.\n" * 8]


def as_qwen(tokenizer):
    """The same tokens, cut as the tokenizer class of Qwen3.5 cuts text, whatever its file says."""
    own = json.loads(transformers.Qwen3_5Tokenizer().backend_tokenizer.to_str())
    parts = {part: own[part] for part in ("normalizer", "pre_tokenizer")}
    return replace(tokenizer, spec=tokenizer.spec | parts)


def save(name, folder, tokenizer, seed):
    config = getattr(transformers, f"{name}Config")(**(WRAPPERS | TEXT_ONLY | {"HrmText": TEXT})[name])
    torch.manual_seed(seed)
    class_for(type(config)).from_config(config).save_pretrained(folder)
    tokenizer.save(folder)
    if name in WRAPPERS:
        for file, content in PROCESSOR.items():
            (folder / file).write_text(content)
    if name in PREDICTION:
        add_prediction(folder, *PREDICTION[name])
    return folder


def add_prediction(folder, *names):
    """What a family stores of multi-token prediction: tables with a row for each token, and what is none."""
    tensors = load_file(folder / "model.safetensors")
    *tables, projection = names
    added = {table: torch.randn(ROWS, WIDTH) for table in tables} | {projection: torch.randn(WIDTH, 2 * WIDTH)}
    save_file(tensors | added, folder / "model.safetensors", metadata={"format": "pt"})


def logits(folder, ids):
    """Of the class that the config names, as another program would load it: nothing may be missing or left over."""
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    prediction = {key for key in info["unexpected_keys"] if key.startswith(("model.layers.2.", "mtp."))}
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["unexpected_keys"] - prediction
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids])).logits[0]


def changed(folder, before):
    after, old = load_file(folder / "model.safetensors"), load_file(before / "model.safetensors")
    assert after.keys() == old.keys()
    return {name for name in after if not torch.equal(after[name], old[name])}


def train(start, folder, first_new, **settings):
    folder.mkdir()
    chosen = {"tokens": 128, "block": 32, "batch": 2, "warmup_steps": 0, "learning_rate": 1e-2, "keep": "last"}
    text = [TrainingText(lambda: iter(DOCUMENTS), 1.0, "text")]
    facts, _ = pretrain_folder(
        start, first_new, text, HeldOut(), PretrainSettings.model_validate(chosen | settings), 1, folder
    )
    return facts


def check_prediction(name, place, first_new, size):
    """Tables of multi-token prediction went through T: old rows are as they were, new ones are filled."""
    *tables, projection = PREDICTION[name]
    for part, source in (("initialised", "base"), ("rows", "base"), ("of_rows", "variant")):
        found, stored = (load_file(place / folder / "model.safetensors") for folder in (part, source))
        for table in tables:
            torch.testing.assert_close(found[table][:first_new], stored[table], atol=1e-6, rtol=1e-6)
            assert len(found[table]) == size and found[table][first_new:].any(dim=1).all()
        assert torch.equal(found[projection], stored[projection])


def check_plan(name, base):
    """A plan knows the model's sizes, or refuses in one line."""
    if name == "Mllama":  # transformers registers no class for its text part alone
        remedy = "mllama_text_model: transformers has no class .*; `lepta adapt` without --dry-run runs its recipe"
        with pytest.raises(LeptaError, match=remedy):
            shape_of(str(base))
    else:
        assert shape_of(str(base)).width == WIDTH


@pytest.mark.parametrize("name", [*WRAPPERS, *TEXT_ONLY])
def test_a_family_goes_the_whole_way(name, tiny_tokenizer, tiny_extended, tmp_path):
    if name == "Qwen3_5":
        tiny_tokenizer, tiny_extended = as_qwen(tiny_tokenizer), as_qwen(tiny_extended)
    base, variant = (save(name, tmp_path / part, tiny_tokenizer, seed) for seed, part in enumerate(("base", "variant")))
    folders = {part: tmp_path / part for part in ("initialised", "rows", "lora", "of_rows", "of_lora")}
    first_new, size = tiny_tokenizer.vocabulary().size, tiny_extended.vocabulary().size
    check_plan(name, base)
    old, new = [1, 504, 2338, 260, 3999], [1, size - 1, first_new, 504]

    folders["initialised"].mkdir()
    initialise(Checkpoint(base), tiny_extended, folders["initialised"])
    train(folders["initialised"], folders["rows"], first_new, trains="new-rows")
    facts = train(folders["initialised"], folders["lora"], first_new, trains="embeddings+lora")
    for trained, result, scale in (("rows", "of_rows", None), ("lora", "of_lora", 1.0)):
        folders[result].mkdir()
        models = Checkpoint(base), Checkpoint(folders[trained]), [(Checkpoint(variant), folders[result])]
        propagate(*models, body_deltas=[scale])

    before = {part: logits(tmp_path / part, old) for part in ("base", "variant")}
    for part, source in (("initialised", "base"), ("rows", "base"), ("of_rows", "variant")):
        found = logits(folders[part], old)
        assert found.shape == (5, size)
        torch.testing.assert_close(found[:, :first_new], before[source], atol=1e-5, rtol=1e-4)
    for part in folders:
        assert logits(folders[part], new).isfinite().all()
        assert not torch.equal(logits(folders["lora"], old)[:, :first_new], before["base"])

    if name in PREDICTION:
        check_prediction(name, tmp_path, first_new, size)

    ends = set(Checkpoint(base).vocabulary_names)
    assert changed(folders["rows"], folders["initialised"]) <= ends
    learned = changed(folders["lora"], folders["initialised"])
    assert ends & learned and learned - ends
    assert not [tensor for tensor in learned if "vision" in tensor or "visual" in tensor or "projector" in tensor]
    if name in WITH_EXPERTS:
        assert all("attn" in tensor for tensor in learned - ends)
        assert any("experts" in missed for missed in facts["unreached"])
    if name in WRAPPERS:
        for part in folders.values():
            assert {file: (part / file).read_text() for file in PROCESSOR} == PROCESSOR
            for field, value in (IMAGES | SEEN).items():
                assert getattr(AutoConfig.from_pretrained(part), field, value) in (
                    value,
                    151655,
                    151656,
                    151652,
                    151653,
                )


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"model_type": "t5"}, "model_type t5 is no decoder-only language model"),
        ({"model_type": "clip"}, "model_type clip is no decoder-only language model"),
        ({"model_type": "new"}, "model_type new is not one that transformers has; take"),
        ({"model_type": "gemma3n", "audio_config": {"vocab_offset": 262272}}, "audio_config.vocab_offset is 262272"),
    ],
)
def test_what_cannot_get_another_vocabulary_is_refused_by_every_first_command(
    config, match, tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path
):
    folder, result = tmp_path / "base", tmp_path / "result"
    shutil.copytree(tiny_model_folder(rows=ROWS, tokenizer=tiny_tokenizer), folder)
    changed = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(changed))
    result.mkdir()
    with pytest.raises(LeptaError, match=match):
        initialise(Checkpoint(folder), tiny_extended, result)
    with pytest.raises(LeptaError, match=match):
        shape_of(str(folder))
    side = {"language": "ru", "train": ["starter:ru/train"], "valid": ["starter:ru/valid"]}
    recipe = {
        "name": "refused",
        "output": str(tmp_path / "out"),
        "base": str(folder),
        "vocabulary": {"corpus": ["starter:ru/train"], "add": 100},
        "pretrain": {"tokens": 100},
        "text": {"target": side, "source": side},
    }
    with pytest.raises(LeptaError, match=match):
        pipeline_of(Recipe.model_validate(recipe))


UNREACHED = {"Gemma3nText": ["model.layers.*.altup.correction_coefs.weight"], "Gemma4Text": [], "Phi3": []}


@pytest.mark.parametrize("name", [*WRAPPERS, *TEXT_ONLY])
def test_all_low_rank_changes_get_a_gradient(name):
    """Several processes stop at a parameter without one."""
    config = getattr(transformers, f"{name}Config")(**(WRAPPERS | TEXT_ONLY)[name])
    model = class_for(type(config)).from_config(config)
    settings = PretrainSettings(tokens=1, trains="embeddings+lora")
    make_trainable(model, settings, 10, 1e-3)
    ids = torch.arange(10, 42).view(2, 16)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    trained = {path: parameter for path, parameter in model.named_parameters() if parameter.requires_grad}
    assert [path for path, parameter in trained.items() if parameter.grad is None] == []
    assert any("lora_B" in path for path in trained)
    assert name not in UNREACHED or unreached(model, settings) == UNREACHED[name]


def test_what_stores_several_matrices_as_one_trains_rows_alone(tiny_tokenizer, tiny_extended, tmp_path):
    """HRM keeps its layers in two lists, and their projections in one matrix of the files."""
    base, start = save("HrmText", tmp_path / "base", tiny_tokenizer, 0), tmp_path / "start"
    first_new = tiny_tokenizer.vocabulary().size
    start.mkdir()
    initialise(Checkpoint(base), tiny_extended, start)
    with pytest.raises(LeptaError, match=r"gqkv_proj.weight is not .*q_proj alone, .*leave it out of lora.targets"):
        train(start, tmp_path / "lora", first_new, trains="embeddings+lora")
    (tmp_path / "out").mkdir()
    with pytest.raises(LeptaError, match=r"HrmTextForCausalLM: its \d+ layers are not in one list, .*train the rows"):
        distill_folder(base, start, lambda: iter(DOCUMENTS), DistillSettings(tokens=100, batch=1), 1, tmp_path / "out")
    train(start, tmp_path / "rows", first_new, trains="new-rows")
    assert changed(tmp_path / "rows", start) <= set(Checkpoint(base).vocabulary_names)


def test_distillation_of_per_layer_embeddings_is_refused(tiny_tokenizer, tiny_extended, tmp_path):
    base, start = save("Gemma4Text", tmp_path / "base", tiny_tokenizer, 0), tmp_path / "start"
    start.mkdir()
    initialise(Checkpoint(base), tiny_extended, start)
    settings = DistillSettings(tokens=100)
    with pytest.raises(LeptaError, match=r"embed_tokens_per_layer.weight is looked up by token in each layer"):
        distill_folder(base, start, lambda: iter(DOCUMENTS), settings, 1, tmp_path / "out")
