"""Alignment, rows that learn, the distance of hidden states, and a head by counting."""

import numpy as np
import pytest
import torch

from lepta.core.errors import LeptaError
from lepta.distillation.head import FrozenRows, HeadStates, calibrate, constant_direction, fit
from lepta.distillation.passages import choose_passages, cut
from lepta.distillation.pieces import PieceTree, Targets, branch_targets
from lepta.distillation.student import Distiller
from lepta.distillation.targets import learned_rows, target_rows
from lepta.distillation.tie import shared_rows
from lepta.models.loss import LogitRule
from lepta.models.states import hidden_distance
from lepta.text.sources import read_documents
from lepta.vocabulary.alignment import Aligner
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


def test_distance_is_in_units_of_variance():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 50, 4, generator=generator) * torch.tensor([100.0, 1.0, 0.01, 1.0])
    found = target + 0.5 * target.std(1, keepdim=True)
    weights = torch.ones(1, 50)
    assert hidden_distance(target, target, weights) == 0
    assert hidden_distance(target, found, weights) == pytest.approx(0.25, rel=0.1), "whatever the size of a dimension"


def test_distance_leaves_out_what_is_far_longer_than_the_rest():
    target = torch.randn(1, 50, 4, generator=torch.Generator().manual_seed(0))
    found, weights = target + 0.5, torch.ones(1, 50)
    known = hidden_distance(target[:, 1:], found[:, 1:], weights[:, 1:])
    target[0, 0] *= 1000
    found[0, 0] = 0
    torch.testing.assert_close(hidden_distance(target, found, weights), known)


@pytest.mark.parametrize("number", [0, 1, 7])
def test_a_batch_with_too_few_positions_teaches_nothing(number):
    """One position has no variance, and a batch may have no learned token at all."""
    target, weights = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 50)
    weights[0, :number] = 1.0
    found = (target + 0.5).requires_grad_()
    loss = hidden_distance(target, found, weights)
    loss.backward()
    assert loss == 0 and not found.grad.any()


PLAIN = LogitRule()


def states_of(rows, labels, learned, rule=PLAIN):
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


def nats(rows, found, rule=PLAIN):
    return found.cross_entropy(found.logits(rows, rule, None)).mean()


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(scale=0.5), LogitRule(cap=20.0)])
def test_calibrated_rows_are_as_likely_as_their_tokens_occur(rule):
    torch.manual_seed(0)
    true = torch.randn(30, 16) * 0.3
    found = states_of(true, 4000, 10, rule)
    start = torch.zeros(10, 16)
    moves = torch.ones(10)
    moves[3] = 0
    rows = calibrate(start, found, rule, None, moves)
    assert torch.equal(rows[3], start[3])
    logits = rule.apply(found.states @ rows.T)
    total = torch.logaddexp(found.rest, logits.logsumexp(1))
    expected = (logits - total[:, None]).exp().sum(0)
    counts = torch.bincount(found.slot[found.slot >= 0], minlength=10).float()
    torch.testing.assert_close(expected[moves > 0], counts[moves > 0], rtol=0.05, atol=1.0)
    assert nats(rows, found, rule) < nats(start, found, rule)
    direction = constant_direction(found.states)
    assert (found.states @ direction).std() < 0.05


def test_fitted_rows_find_those_that_made_the_text():
    torch.manual_seed(0)
    true = torch.randn(30, 16) * 0.5
    found = states_of(true, 8000, 10)
    rows = torch.nn.Parameter(torch.zeros(10, 16))
    fit(rows, found, None, LogitRule(), None, 0.05, 30, 0)
    assert nats(rows.detach(), found) < nats(true[20:], found) + 0.02


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(cap=5.0)])
def test_likely_rows_stand_for_all(rule):
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(200, 8, generator=generator), torch.randn(3000, 8, generator=generator)
    weight[:2500, 0] -= 6
    states[:, 0] = 1
    whole = FrozenRows(weight, None, rule)
    exact = rule.apply(states @ weight.T).logsumexp(1)
    torch.testing.assert_close(whole.total(states), exact, rtol=0, atol=1e-4)
    fewer = whole.likely(states[:100], torch.zeros(100))
    torch.testing.assert_close(fewer.total(states[100:]), exact[100:], rtol=0, atol=0.05)


# Tokens: 0 = a, 1 = ab, 2 = abc, 3 = abd, 4 = e (nothing begins with it), 5 = fg, where f is no token.
PATHS = [[7], [7, 8], [7, 8, 9], [7, 8, 10], [11], [12, 13]]


def test_mass_of_a_branch_is_that_of_the_tokens_below_it():
    tree = PieceTree(PATHS, torch.device("cpu"))
    logits = torch.randn(6, 5, requires_grad=True)
    mass = tree.log_mass(logits)
    assert tree.first_pieces.tolist() == [7, 11, 12]
    torch.testing.assert_close(mass[0], logits[:4].logsumexp(0))
    torch.testing.assert_close(mass[1], logits[4])
    torch.testing.assert_close(mass[2], logits[5])
    ab = tree.inner_nodes([7, 8])[1]
    torch.testing.assert_close(mass[ab], logits[1:4].logsumexp(0))
    torch.testing.assert_close(mass[int(tree.leaf[ab])], logits[1])
    (gradient,) = torch.autograd.grad(mass[ab].sum(), logits)
    torch.testing.assert_close(gradient[1:4], logits[1:4].softmax(0))
    assert not gradient[[0, 4, 5]].any()


def test_branches_have_the_probabilities_of_the_next_old_token():
    tree = PieceTree(PATHS, torch.device("cpu"))
    head, states = torch.randn(20, 4), torch.randn(3, 4)
    probability = (states @ head.T).softmax(1)
    nodes = np.asarray([tree.inner_nodes([7])[0], tree.inner_nodes([7, 8])[1], tree.inner_nodes([12])[0]])
    entry, branch, found = branch_targets(tree, nodes, states, (states @ head.T).logsumexp(1), head, LogitRule())
    by_branch = dict(zip(branch.tolist(), found.tolist(), strict=True))
    assert np.bincount(entry, found) == pytest.approx([1, 1, 1])
    a, ab, f = (int(node) for node in nodes)
    assert by_branch[ab] == pytest.approx(float(probability[0, 8]))
    assert by_branch[int(tree.leaf[nodes][0])] == pytest.approx(1 - float(probability[0, 8]))
    assert by_branch[int(tree.leaf[nodes][1])] == pytest.approx(1 - float(probability[1, 9] + probability[1, 10]))
    assert tree.leaf[nodes][2] == -1, "f alone is no token, so fg is certain"
    assert [by_branch[int(i)] for i in branch[entry == 2]] == [1.0]
    assert {int(tree.parent[i]) for i in branch[entry == 0]} == {a} and f != a


def test_rows_that_say_what_the_original_expects_are_best():
    """The loss is smallest, and its gradient zero, where each token has the probability of its pieces."""
    tree = PieceTree(PATHS[:4], torch.device("cpu"))
    head, states = torch.randn(20, 4), torch.randn(2, 4)
    total = (states @ head.T).logsumexp(1)
    nodes = np.asarray(tree.inner_nodes([7, 8]))
    after = torch.randn(2, 4)
    _, branch, probability = branch_targets(tree, nodes, after, (after @ head.T).logsumexp(1), head, LogitRule())
    start = torch.tensor([0, len(branch), len(branch)])  # the second position has first pieces alone
    targets = Targets(
        states, total, torch.ones(2).bool(), start, torch.from_numpy(branch), torch.from_numpy(probability)
    )
    first = (states @ head[7] - total).exp()
    b, c, d = (after @ head.T).softmax(1)[0, 8], *(after @ head.T).softmax(1)[1, [9, 10]]
    exact = torch.stack([1 - b, b * (1 - c - d), b * c, b * d])[:, None] * first
    logits = exact.log().requires_grad_(True)
    rest = (1 - first).log()
    loss = targets.cross_entropy(torch.arange(2), tree, head[tree.first_pieces], LogitRule(), logits, rest)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.abs().max() < 1e-5
    other = targets.cross_entropy(
        torch.arange(2), tree, head[tree.first_pieces], LogitRule(), logits + torch.randn(4, 1), rest
    )
    assert (other > loss).all()


def test_learned_rows_of_a_real_vocabulary(old, new):
    change = VocabularyChange.between(old, new)
    fresh = change.new_ids
    moving = learned_rows(old, new, fresh, change.old_id_of, move_targets=True, tied=False)
    assert set(fresh) < set(moving.moving) <= set(moving.outputs)
    assert moving.inputs.tolist() == fresh.tolist()
    for token, path in zip(moving.outputs.tolist(), moving.paths, strict=True):
        assert b"".join(map(old.data, path)) == new.data(token)
    new_places = np.flatnonzero(moving.first >= 0)
    assert new_places.size > len(fresh) / 2
    for place in new_places[:50]:
        piece = new.data(int(moving.outputs[moving.first[place]]))
        assert new.data(int(moving.outputs[place])).startswith(piece)
    still = learned_rows(old, new, fresh, change.old_id_of, move_targets=False, tied=True)
    assert still.moving.tolist() == fresh.tolist() and still.inputs.tolist() == still.outputs.tolist()


def test_passages_have_each_token_often_enough_first(tiny_tokenizer, tiny_extended):
    old, new = tiny_tokenizer.vocabulary(), tiny_extended.vocabulary()
    fresh = VocabularyChange.between(old, new).new_ids
    whole = [int(i) for i in fresh if new.data(int(i)).decode(errors="ignore").encode() == new.data(int(i))]
    common_id, rare_id = whole[0], whole[100]
    common, rare = (new.data(i).decode() for i in (common_id, rare_id))
    documents = [f"{common} " * 20] * 50 + [f"{rare} " * 20]
    chosen = choose_passages(documents, Aligner(old, new, 1, 1), fresh, 120, 400, 8, 0, 3)
    assert chosen.counts[rare_id] > 0, "the only passage with it is taken, whatever the order"
    with pytest.raises(LeptaError, match="none occurs in the text"):
        choose_passages(["plain English text"] * 9, Aligner(old, new, 1, 1), fresh, 50, 400, 8, 0, 3)


def test_it_is_known_whether_the_budget_took_all_of_the_text(tiny_tokenizer, tiny_extended):
    old, new = tiny_tokenizer.vocabulary(), tiny_extended.vocabulary()
    fresh = VocabularyChange.between(old, new).new_ids
    text = list(read_documents(["starter:ru/valid"]))[:20]

    def chosen(tokens):
        return choose_passages(text, Aligner(old, new, 1, 1), fresh, tokens, 200, 8, 4, 3)

    everything = chosen(10**6)
    all_tokens = sum(len(passage.new_ids) - 1 for passage in everything.chosen)
    assert everything.whole and chosen(all_tokens).whole
    assert not chosen(all_tokens - 300).whole, "read to its end, but not all chosen"
    assert not chosen(100).whole
    assert (chosen(100).counts[fresh] == 0).sum() > (everything.counts[fresh] == 0).sum()


def test_cut_loses_nothing_but_white_space():
    text = "слово " * 50 + "x" * 130 + "\n\nдальше"
    pieces = cut(text, 60)
    assert max(map(len, pieces)) <= 60
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert np.mean([len(piece) for piece in pieces]) > 30


def test_a_row_for_both_ends_is_the_heads_where_states_vary_and_the_embeddings_elsewhere():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(500, 8, generator=generator) * torch.tensor([10.0, 3, 1, 1, 0, 0, 0, 0])
    inputs, outputs = torch.randn(2, 5, 8, generator=generator)
    second = states.T @ states / len(states)
    rows = shared_rows(inputs, outputs, second, 1e-5)
    torch.testing.assert_close(rows[:, :4], outputs[:, :4], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(rows[:, 4:], inputs[:, 4:])
    torch.testing.assert_close(shared_rows(inputs, outputs, second, 1e6), inputs, atol=1e-4, rtol=1e-4)
    # the least of what it is to make small: no step away from it is better
    weight = 0.3 * states.square().mean()

    def cost(rows):
        return ((states @ (rows - outputs).T) ** 2).mean(0) + weight * (rows - inputs).square().sum(1)

    best = shared_rows(inputs, outputs, second, 0.3)
    for step in torch.randn(20, 5, 8, generator=generator) * 0.1:
        assert (cost(best + step) > cost(best)).all()


def test_dropout_of_the_body_is_off_while_rows_learn():
    """Or the same model would be at a distance from itself."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, embd_pdrop=0.5, resid_pdrop=0.5))
    new = torch.tensor([62, 63])
    distiller = Distiller(model.eval(), model.get_input_embeddings().weight.detach().clone(), new, new, 1).train()
    assert distiller.training
    ids, ends = torch.arange(10)[None], torch.arange(10)[None]
    assert distiller(ids, ids, ends, ends, torch.ones(1, 10))["loss"] == 0


def test_layers_with_several_streams_are_compared_in_all_of_them():
    from transformers import AutoModelForCausalLM, HYV4Config

    sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]}
    index = {"index_topk": 16, "index_head_dim": 8, "index_n_heads": 2, "indexer_types": ["full", "shared"]}
    rotated = {"head_dim": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "qk_head_dim": 8}
    kinds = {"layer_types": ["indexed_attention"] * 2, "vocab_size": 64, "pad_token_id": 0}
    config = HYV4Config(**sizes, **heads, **experts, **index, **rotated, **kinds)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    new = torch.tensor([62, 63])
    distiller = Distiller(model, model.get_input_embeddings().weight.detach().clone(), new, new, 1)
    ids, ends = torch.arange(1, 11)[None], torch.arange(10)[None]
    other = torch.full_like(ids, 62)
    assert distiller(ids, ids, ends, ends, torch.ones(1, 10))["loss"] == 0
    assert distiller(ids, other, ends, ends, torch.ones(1, 10))["loss"] > 0
