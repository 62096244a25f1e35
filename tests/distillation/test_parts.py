"""Alignment, rows that learn, the distance of hidden states, and a head by counting."""

import numpy as np
import pytest
import torch

from lepta.core.errors import LeptaError
from lepta.distillation.alignment import Aligner
from lepta.distillation.head import HeadStates, calibrate, constant_direction, cross_entropy, fit
from lepta.distillation.passages import choose_passages, cut
from lepta.distillation.student import LearnedHead, hidden_distance
from lepta.distillation.targets import target_rows
from lepta.models.loss import LogitRule
from lepta.vocabulary.build import build_vocabulary
from lepta.vocabulary.change import VocabularyChange


def prefix(vocabulary, ids):
    return b"".join(map(vocabulary.data, ids))


@pytest.mark.parametrize("scenario", ["extended", "bpe"])
def test_ends_agree_in_bytes(tiny_tokenizer, tiny_extended, russian, scenario):
    old = tiny_tokenizer.vocabulary()
    new = tiny_extended.vocabulary()
    if scenario == "bpe":
        new = build_vocabulary(tiny_tokenizer, ["starter:ru/valid"], "bpe", size=2000).vocabulary()
    texts = [russian[0][:300], "Привет, мир! 123 🙂 hello", "e\u0301 и й"]
    for text, passage in zip(texts, Aligner(old, new, 1, 2).align(texts), strict=True):
        assert passage.old_ids[0] == 1 and passage.new_ids[0] == 2
        assert passage.size == len(text.encode())
        for old_end, new_end in zip(passage.old_ends, passage.new_ends, strict=True):
            known = prefix(old, passage.old_ids[1 : old_end + 1])
            assert known == prefix(new, passage.new_ids[1 : new_end + 1])
            assert text.startswith(known.decode())  # an end inside a character could not be decoded
        assert passage.old_ends[-1] == len(passage.old_ids) - 1
        if scenario == "extended" and text == texts[0]:
            inside_characters = len(passage.new_ids) - len(passage.new_ends)
            assert inside_characters < len(passage.new_ids) / 20, "new tokens are old ones put together"


def test_text_that_a_tokenizer_changes_is_left_out(tiny_tokenizer):
    composing = tiny_tokenizer.spec | {"normalizer": {"type": "NFC"}}
    new = type(tiny_tokenizer)(composing).vocabulary()
    changed, kept = Aligner(tiny_tokenizer.vocabulary(), new, 1, 1).align(["e\u0301", "plain"])
    assert changed is None
    assert kept is not None


def test_target_rows_are_those_of_the_script_alone(old, new):
    fresh = VocabularyChange.between(old, new).new_ids
    chosen = set(target_rows(new, fresh).tolist())
    assert chosen.isdisjoint(fresh.tolist())
    by_bytes = {new.data(i): i for i in range(old.size)}
    assert {by_bytes["а".encode()], by_bytes[" п".encode()], by_bytes[b"\xd0"]} <= chosen
    for other in (b" the", b" ", b"1", b".", b"\xe2", "é".encode()):
        if other in by_bytes:
            assert by_bytes[other] not in chosen, other
    english = {i for ids in old.encode(["The cat sat on the mat, 42 times: it's “fine”."]) for i in ids}
    assert chosen.isdisjoint(english)


def test_tokens_in_latin_have_no_rows_of_their_script_alone(smollm2, old):
    polish = build_vocabulary(smollm2, ["starter:en/valid"], "extended", add=50, script="Latin").vocabulary()
    assert len(target_rows(polish, VocabularyChange.between(old, polish).new_ids)) == 0


def test_distance_leaves_out_what_is_far_longer_than_the_rest():
    target = torch.ones(1, 5, 4)
    target[0, 2] *= 1000
    found, weights = target + 0.5, torch.tensor([[0.0, 1, 1, 1, 1]])
    found[0, 2] = 0
    assert hidden_distance(target, found, weights) == pytest.approx(4 * 0.25 / 4)
    assert hidden_distance(target, target, weights) == 0


def states_of(rows, labels, learned, rule=LogitRule()):  # noqa: B008  # a frozen value
    """Last hidden states with a constant direction, and a head whose first rows are frozen."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(labels, rows.shape[1], generator=generator)
    states[:, 0] = 1
    logits = rule.apply(states @ rows.T)
    frozen = len(rows) - learned
    ids = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    slot = torch.where(ids < frozen, -1, ids - frozen)
    of_label = logits.gather(1, ids[:, None])[:, 0]
    return HeadStates(states, logits[:, :frozen].logsumexp(1), slot, torch.where(slot < 0, of_label, 0.0))


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(scale=0.5), LogitRule(cap=20.0)])
def test_calibrated_rows_are_as_likely_as_their_tokens_occur(rule):
    torch.manual_seed(0)
    true = torch.randn(30, 16) * 0.3
    found = states_of(true, 4000, 10, rule)
    start = torch.zeros(10, 16)
    rows = calibrate(start, found, rule, None)
    logits = rule.apply(found.states @ rows.T)
    total = torch.logaddexp(found.rest, logits.logsumexp(1))
    expected = (logits - total[:, None]).exp().sum(0)
    counts = torch.bincount(found.slot[found.slot >= 0], minlength=10).float()
    torch.testing.assert_close(expected, counts, rtol=0.05, atol=1.0)
    assert cross_entropy(rows, found, rule).mean() < cross_entropy(start, found, rule).mean()
    direction = constant_direction(found.states)
    assert (found.states @ direction).std() < 0.05


def test_fitted_rows_find_those_that_made_the_text():
    torch.manual_seed(0)
    true = torch.randn(30, 16) * 0.5
    found = states_of(true, 8000, 10)
    rows = torch.nn.Parameter(torch.zeros(10, 16))
    fit(rows, found, LogitRule(), None, 0.05, 30, 0)
    best = cross_entropy(true[20:], found, LogitRule()).mean()
    assert cross_entropy(rows.detach(), found, LogitRule()).mean() < best + 0.02


def test_head_gives_rows_by_token():
    weight, learned = torch.randn(9, 4), torch.tensor([2, 7])
    head = LearnedHead(weight, learned, torch.nn.Parameter(weight[learned].clone()), None)
    torch.testing.assert_close(head.row(torch.arange(9)), weight)
    assert head.place[learned].tolist() == [7, 8]


def test_passages_have_each_token_often_enough_first(tiny_tokenizer, tiny_extended):
    old, new = tiny_tokenizer.vocabulary(), tiny_extended.vocabulary()
    fresh = VocabularyChange.between(old, new).new_ids
    whole = [int(i) for i in fresh if new.data(int(i)).decode(errors="ignore").encode() == new.data(int(i))]
    common_id, rare_id = whole[0], whole[100]
    common, rare = (new.data(i).decode() for i in (common_id, rare_id))
    documents = [f"{common} " * 20] * 50 + [f"{rare} " * 20]
    chosen = choose_passages(documents, Aligner(old, new, 1, 1), new.size, fresh, 120, 400, 8, 0, 3)
    assert chosen.counts[rare_id] > 0, "the only passage with it is taken, whatever the order"
    with pytest.raises(LeptaError, match="none occurs in it"):
        choose_passages(["plain English text"] * 9, Aligner(old, new, 1, 1), new.size, fresh, 50, 400, 8, 0, 3)


def test_cut_loses_nothing_but_white_space():
    text = "слово " * 50 + "x" * 130 + "\n\nдальше"
    pieces = cut(text, 60)
    assert max(map(len, pieces)) <= 60
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert np.mean([len(piece) for piece in pieces]) > 30
