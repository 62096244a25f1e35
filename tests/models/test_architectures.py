"""The architectures of the field: their embeddings are found, and the result loads."""

import pytest
import torch
import transformers

from lepta.core.errors import LeptaError
from lepta.embeddings.initialise import initialise
from lepta.embeddings.propagate import propagate
from lepta.embeddings.transfer import transfer_matrix
from lepta.models.folder import Checkpoint

ROWS, WIDTH = 4000, 32
TEXT = {
    "vocab_size": ROWS,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"vocab_size": ROWS, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
ARCHITECTURES = {
    "Llama": TEXT,
    "Mistral": TEXT,
    "Qwen3": TEXT,
    "Gemma": TEXT,
    "Gemma2": TEXT,
    "Phi": TEXT,
    "Phi3": TEXT,
    "Falcon": {key: value for key, value in TEXT.items() if key != "head_dim"},
    "GPTNeoX": TEXT,
    "Bloom": TEXT | {"n_head": 4, "n_layer": 2},
    "OPT": TEXT | {"ffn_dim": 64, "word_embed_proj_dim": WIDTH},
    "GPT2": GPT,
    "GPTJ": GPT | {"rotary_dim": 4},
    "Mamba": {"vocab_size": ROWS, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4},
    "Olmo2": TEXT,
    "Cohere": TEXT,
}


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embeddings_of_an_architecture_are_found_and_propagated(name, tiny_tokenizer, tiny_extended, tmp_path):
    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name])
    folders = {part: tmp_path / part for part in ("base", "instruct", "adapted", "result")}
    for seed, part in enumerate(("base", "instruct")):
        torch.manual_seed(seed)
        save(transformers.AutoModelForCausalLM.from_config(config), tiny_tokenizer, folders[part])
    folders["adapted"].mkdir()
    folders["result"].mkdir()
    base, instruct = Checkpoint(folders["base"]), Checkpoint(folders["instruct"])
    initialise(base, tiny_extended, folders["adapted"])
    adapted = Checkpoint(folders["adapted"])
    propagate(base, adapted, [(instruct, folders["result"])], "conversion")

    size = tiny_extended.vocabulary().size
    original = transformers.AutoModelForCausalLM.from_pretrained(folders["base"])
    transfer = transfer_matrix(tiny_tokenizer.vocabulary(), tiny_extended.vocabulary(), ROWS, size)
    for part in ("adapted", "result"):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folders[part], output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for matrix in (model.get_input_embeddings(), model.get_output_embeddings()):
            assert matrix.weight.shape == (size, WIDTH)
        assert model(torch.tensor([[1, 2, size - 1]])).logits.isfinite().all()
        if part == "adapted":
            before = original.get_output_embeddings().weight.detach().double().numpy()
            torch.testing.assert_close(
                model.get_output_embeddings().weight.detach(), torch.from_numpy(transfer.matrix @ before).float()
            )


def test_text_model_inside_a_vision_language_model(tiny_tokenizer, tiny_extended, tmp_path):
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT).to_dict(),
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_id=3,
    )
    folder = save(transformers.LlavaForConditionalGeneration(config), tiny_tokenizer, tmp_path / "base")
    result = tmp_path / "result"
    result.mkdir()
    initialise(Checkpoint(folder), tiny_extended, result)
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(result, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    size = tiny_extended.vocabulary().size
    assert model.config.text_config.vocab_size == model.get_output_embeddings().weight.shape[0] == size
    assert model.config.image_token_id == 3
    assert model(input_ids=torch.tensor([[1, 2, size - 1]])).logits.shape[-1] == size


def test_embeddings_of_an_unknown_name_are_asked_for_and_taken(tiny_model_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_model_folder(rows=ROWS)
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        "tokens.table": tensors.pop("model.embed_tokens.weight"),
        "vocabulary.out": tensors.pop("lm_head.weight"),
    }
    save_file(tensors | renamed, folder / "model.safetensors")
    with pytest.raises(
        LeptaError, match=r"found none; name it with --input-embeddings .*(tokens\.table|vocabulary\.out)"
    ):
        Checkpoint(folder)
    checkpoint = Checkpoint(folder, "tokens.table", "vocabulary.out")
    assert checkpoint.embedding_names == ["tokens.table", "vocabulary.out"]
    with pytest.raises(LeptaError, match=r"no tensor token\.table; did you mean tokens\.table\?"):
        Checkpoint(folder, "token.table")


def test_head_that_equals_the_input_embeddings_is_a_head_if_neither_config_nor_family_ties_it(tiny_model_folder):
    """Transformers would not tie them either, and so draw a head at random if there were none."""
    import json

    from safetensors.torch import load_file, save_file

    folder = tiny_model_folder(rows=ROWS)
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    assert not Checkpoint(folder).tied
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    assert not Checkpoint(folder).tied
