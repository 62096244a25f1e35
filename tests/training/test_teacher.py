"""A second loss from the original model, and new tokens spelt by their parts."""

import json

import commands
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lepta.core.errors import LeptaError
from lepta.embeddings.initialise import initialise
from lepta.models.folder import Checkpoint
from lepta.models.load import load_tokenizer
from lepta.models.loss import IGNORED
from lepta.text.sources import read_documents
from lepta.training.blocks import TrainingText, training_blocks
from lepta.training.pretrain import HeldOut, pretrain_folder
from lepta.training.settings import PretrainSettings
from lepta.training.substitution import Substitution, two_parts
from lepta.training.teacher import TEMPERATURE, TaughtBlocks, Teacher, compared, teach
from lepta.training.trainer import collate
from lepta.vocabulary.alignment import Aligner
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.change import VocabularyChange
from lepta.vocabulary.source import open_tokenizer


@pytest.fixture(scope="module")
def pair(tiny_tokenizer, tiny_extended, tiny_model_folder, tmp_path_factory):
    """A model and the same with 300 Russian tokens."""
    original = tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer)
    folder = tmp_path_factory.mktemp("initialised")
    initialise(Checkpoint(original), tiny_extended, folder)
    return original, folder


@pytest.fixture
def blocks(pair, tmp_path):
    """Make blocks of Russian text for the adapted model."""

    def make(substitution=None, seed=1, place="blocks", **values):
        text = TrainingText(lambda: read_documents(["starter:ru/valid"]), 1.0, substitution=substitution)
        settings = PretrainSettings(tokens=1200, block=64, **values)
        return training_blocks([text], load_tokenizer(pair[1]), settings, seed, tmp_path / place)

    return make


def aligner_of(pair):
    return Aligner(*(open_tokenizer(folder).vocabulary() for folder in pair))


@pytest.mark.parametrize("apart", [False, True])
def test_pieces_of_both_are_the_same_text(pair, blocks, apart):
    old, new = (open_tokenizer(folder).vocabulary() for folder in pair)
    taught = TaughtBlocks(blocks(documents_apart=apart), Aligner(old, new))
    for number in range(len(taught)):
        example = taught[number]
        texts = []
        for vocabulary, ids, chunks in ((old, "old_ids", "old_chunks"), (new, "input_ids", "chunks")):
            pieces = {}
            for token, piece in zip(example[ids].tolist(), example[chunks].tolist(), strict=True):
                pieces[piece] = pieces.get(piece, b"") + vocabulary.data(token)
            left_out = pieces.pop(-1)
            assert len(left_out) < 40 * (1 + (example["position_ids"] == 0).sum() if apart else 1)
            texts.append(pieces)
        assert texts[0] == texts[1] and len(texts[0]) > 10
        for text in texts[0].values():
            text.decode()  # no piece ends inside a character
        assert example["chunks"][0] == -1  # nothing predicts the first token


def test_loss_and_gradients_are_those_of_torch(pair, blocks):
    """Against all logits at once, in float32."""
    old_model, model = (AutoModelForCausalLM.from_pretrained(folder) for folder in pair)
    examples = TaughtBlocks(blocks(), aligner_of(pair))
    batch = collate([examples[0], examples[1]], 0)
    weight = 0.7
    reference = AutoModelForCausalLM.from_pretrained(pair[1])
    logits = reference(batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    own = logits.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    with torch.no_grad():
        old_logits = old_model(batch["old_ids"]).logits[:, :-1].log_softmax(-1)
    other = old_logits.gather(2, batch["old_ids"][:, 1:, None])[..., 0]
    expected = -own[labels != IGNORED].sum()
    pieces = 0
    for row in range(2):
        for piece in set(batch["chunks"][row].tolist()) - {-1}:
            p, t = (
                (values[row][chunks[row][1:] == piece].sum() / TEMPERATURE).exp()
                for values, chunks in ((own, batch["chunks"]), (other, batch["old_chunks"]))
            )
            divergence = t * (t / p).log() + (1 - t) * ((1 - t) / (1 - p)).log()
            expected = expected + weight * TEMPERATURE * divergence
            pieces += 1
    assert pieces > 20
    (expected / 100).backward()
    teach(model, Teacher(old_model, aligner_of(pair), weight))
    loss = model(**batch, num_items_in_batch=100).loss
    loss.backward()
    torch.testing.assert_close(loss, expected / 100, rtol=1e-4, atol=1e-5)
    for one, two in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-2, atol=1e-4 * float(two.grad.abs().max()))


@pytest.mark.parametrize("apart", [False, True])
def test_states_are_compared_where_tokens_of_both_end(pair, blocks, apart):
    """Against hidden states that are looked up one by one, by the bytes before them."""
    old_model, model = (AutoModelForCausalLM.from_pretrained(folder) for folder in pair)
    examples = TaughtBlocks(blocks(documents_apart=apart), aligner_of(pair))
    batch = collate([examples[0], examples[1]], 0)
    positions = batch.get("position_ids"), batch.get("old_position_ids")
    reference = AutoModelForCausalLM.from_pretrained(pair[1])
    out = reference(batch["input_ids"], position_ids=positions[0], output_hidden_states=True)
    with torch.no_grad():
        old = old_model(batch["old_ids"], position_ids=positions[1], output_hidden_states=True).hidden_states[-1]
    labels = batch["labels"][:, 1:]
    cross_entropy = torch.nn.functional.cross_entropy(out.logits[:, :-1].transpose(1, 2), labels, reduction="sum")
    found, target = [], []
    for row in range(2):
        chunks, old_chunks = batch["chunks"][row].tolist(), batch["old_chunks"][row].tolist()
        for piece in sorted(set(chunks) - {-1}):
            found.append(out.hidden_states[-1][row, len(chunks) - 1 - chunks[::-1].index(piece)])
            target.append(old[row, len(old_chunks) - 1 - old_chunks[::-1].index(piece)])
    found, target = torch.stack(found), torch.stack(target)
    distances = ((found - target).square() / target.var(0, correction=0)).mean(1)
    expected = (cross_entropy + 0.7 * distances.sum()) / 100
    expected.backward()
    teach(model, Teacher(old_model, aligner_of(pair), 0.7, "states"))
    loss = model(**batch, num_items_in_batch=100).loss
    loss.backward()
    assert len(found) > 20 and distances.mean() > 0.01
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for one, two in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-2, atol=1e-3 * float(two.grad.abs().max()))


def test_states_of_another_width_are_one_line(pair, tiny_tokenizer, tiny_model_folder):
    other = AutoModelForCausalLM.from_pretrained(tiny_model_folder(rows=4000, tokenizer=tiny_tokenizer, hidden=16))
    model = AutoModelForCausalLM.from_pretrained(pair[1])
    with pytest.raises(LeptaError, match="hidden states have 16 dimensions"):
        teach(model, Teacher(other, aligner_of(pair), 1.0, "states"))


def test_equal_likelihoods_cost_nothing():
    losses, chunks = torch.tensor([1.0, 2.0, 0.5, 3.0]), torch.tensor([[0, 0, -1, 1]])
    divergence, shares = compared(losses, torch.tensor([3.0, 3.0]), chunks, torch.tensor([[0, 1]]))
    assert divergence.abs() < 1e-4 and shares.abs().max() < 1e-4
    divergence, shares = compared(losses, torch.tensor([1.0, 6.0]), chunks, torch.tensor([[0, 1]]))
    assert divergence > 0
    assert (shares[:2] > 0).all() and shares[2] == 0 and shares[3] < 0  # less likely than the teacher has it, and more


@pytest.mark.parametrize("trains", ["embeddings", "new-rows", "embeddings+lora", "full"])
def test_a_teacher_draws_the_student_nearer_whatever_trains(pair, tmp_path, trains):
    def curve(**values):
        text = TrainingText(lambda: read_documents(["starter:ru/valid"]), 0.8)
        source = TrainingText(lambda: read_documents(["starter:en/valid"]), 0.2)
        common = {"tokens": 1000, "block": 48, "learning_rate": 1e-3, "source_share": 0.2, "body_dtype": "bfloat16"}
        settings = PretrainSettings.model_validate(common | {"trains": trains, "documents_apart": True} | values)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        teacher = pair[0] if settings.teacher else None
        return pretrain_folder(pair[1], 4000, [text, source], HeldOut(), settings, 1, folder, teacher)[1]

    losses = [entry["loss"] for entry in curve(teacher=str(pair[0]), teacher_weight=20.0)]
    plain = [entry["loss"] for entry in curve()]
    assert losses[0] - plain[0] > losses[-1] - plain[-1] + 1  # the teacher's part, in nats times 20


@pytest.fixture
def place(pair, tiny_extended, tmp_path):
    """A folder to run commands in."""
    for name, folder in zip(("original", "model"), pair, strict=True):
        (tmp_path / name).symlink_to(folder)
    (tmp_path / "other").mkdir()
    tiny_extended.save(tmp_path / "other")
    return tmp_path


def run(place, output, *more, check=0):
    options = ["--model", "model", "--text", "starter:ru/train", "--tokens", "1500", "--block", "48"]
    taught = ["--original", "original", "--substitution", "0.3", "--schedule", "wsd", "--save-every", "5"]
    command = ["pretrain", *options, *taught, "--output", output, *more]
    return commands.lepta(*command, cwd=place, check=check)


def test_a_taught_run_that_is_killed_ends_in_the_same_files(place):
    teacher = ["--teacher", "original"]
    run(place, "whole", *teacher)
    checkpoints = place / ".killed.partial" / "checkpoints"
    options = ["--model", "model", "--text", "starter:ru/train", "--tokens", "1500", "--block", "48", *teacher]
    taught = ["--original", "original", "--substitution", "0.3", "--schedule", "wsd", "--save-every", "5"]
    commands.killed(
        *["pretrain", *options, *taught, "--output", "killed"],
        cwd=place,
        when=lambda: list(checkpoints.glob("checkpoint-*/trainer_state.json")),
    )
    run(place, "killed", *teacher)
    for name in ("model.safetensors", "training_curve.json"):
        assert (place / "killed" / name).read_bytes() == (place / "whole" / name).read_bytes()
    key = json.loads((place / "whole" / "manifest.json").read_text())["key"]
    assert "teacher" in key["inputs"] and key["settings"]["substitution"] == 0.3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--teacher", "other"], "--teacher: other: id 4000 is"),
        (["--teacher", "nowhere"], "nowhere"),
        (["--decay-share", "0"], "--decay-share"),
        (["--substitution", "1"], "--substitution"),
    ],
)
def test_bad_settings_are_one_line_before_anything_runs(place, options, says):
    error = run(place, "bad", *options, "--dry-run", check=2).stderr
    assert says in error.splitlines()[-1] and "Traceback" not in error
    assert not (place / "bad").exists()


def new_ids_of(pair):
    old, new = (open_tokenizer(folder).vocabulary() for folder in pair)
    return new, VocabularyChange.between(old, new).new_ids


def test_spelt_text_is_the_same_and_rare_parts_occur_more(pair, blocks):
    vocabulary, new_ids = new_ids_of(pair)
    plain, spelt = (
        np.concatenate([made.texts[0].store.tokens]).tolist()
        for made in (blocks(), blocks(Substitution(vocabulary, new_ids, 0.3), place="spelt"))
    )
    text = [b"".join(vocabulary.data(token) for token in tokens) for tokens in (plain, spelt)]
    assert text[0].startswith(text[1][:4000]) and len(spelt) > len(plain)
    before, after = (np.bincount(tokens, minlength=vocabulary.size) for tokens in (plain, spelt))
    fewer = [token for token in new_ids.tolist() if after[token] < before[token]]
    parts = two_parts(vocabulary)
    assert len(fewer) > 10
    for token in fewer:
        assert min(before[part] for part in parts[token] if part in set(new_ids.tolist())) < before[token]


def test_substitution_depends_on_the_seed_alone(pair):
    vocabulary, new_ids = new_ids_of(pair)
    paragraphs = vocabulary.encode(list(read_documents(["starter:ru/valid"]))[:40])
    substitution = Substitution(vocabulary, new_ids, 0.3)
    one, again, other = (substitution.begin(seed)(paragraphs) for seed in (1, 1, 2))
    assert one == again != other
    assert len(one) == len(paragraphs)
    none = Substitution(vocabulary, new_ids, 0.0).begin(1)(paragraphs)
    assert none == paragraphs
    shorter = sum(map(len, one)) - sum(map(len, paragraphs))
    every = sum(map(len, Substitution(vocabulary, new_ids, 1.0).begin(1)(paragraphs))) - sum(map(len, paragraphs))
    assert 0.2 < shorter / every < 0.4


def test_a_unigram_has_parts_too(tiny_tokenizer):
    vocabulary = build_vocabulary(tiny_tokenizer, ["starter:ru/valid"], "unigram", size=1200).vocabulary()
    parts = two_parts(vocabulary)
    assert len(parts) > 50
    for token, pair in parts.items():
        assert b"".join(map(vocabulary.data, pair)) == vocabulary.data(token)
