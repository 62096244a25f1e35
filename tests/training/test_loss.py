"""Cross-entropy without logits."""

import pytest
import torch

from lepta.training import loss as module
from lepta.training.loss import IGNORED, linear_cross_entropy


def problem(dtype=torch.float64, rows=37, width=8, size=53, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn((rows, width), generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn((size, width), generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(size, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(0, size, (rows,), generator=generator)
    labels[::5] = IGNORED
    return hidden, weight, labels, bias


@pytest.fixture(params=[1, 1000, 1 << 26], ids=["row by row", "few rows", "at once"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(module, "LOGITS_BYTES", request.param)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_and_gradients_are_those_of_torch(with_bias):
    hidden, weight, labels, bias = problem()
    given = bias if with_bias else None
    expected = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(hidden, weight, given), labels, ignore_index=IGNORED
    )
    inputs = [hidden, weight, *([bias] if with_bias else [])]
    gradients = torch.autograd.grad(3 * expected, inputs)
    found = linear_cross_entropy(hidden, weight, labels, given)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(torch.autograd.grad(3 * found, inputs), gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(trained):
    hidden, weight, labels, _ = problem()
    frozen = {"hidden": weight, "weight": hidden}[trained]
    frozen.requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels).backward()
    assert frozen.grad is None
    assert {"hidden": hidden, "weight": weight}[trained].grad.abs().sum() > 0


def test_bfloat16_is_summed_in_float32():
    hidden, weight, labels, _ = problem(torch.bfloat16, rows=200)
    found = linear_cross_entropy(hidden, weight, labels)
    assert found.dtype == torch.float32
    logits = torch.nn.functional.linear(hidden, weight).float()
    expected = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED)
    torch.testing.assert_close(found, expected)


def test_nothing_to_predict_is_no_loss():
    hidden, weight, labels, _ = problem()
    found = linear_cross_entropy(hidden, weight, torch.full_like(labels, IGNORED))
    assert found.item() == 0
    found.backward()
    assert weight.grad.abs().sum() == 0


def test_training_follows_the_curve_of_the_stock_trainer(tiny_model_folder, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    from lepta.training import trainer
    from lepta.training.pretrain import pretrain

    folder = tiny_model_folder(rows=4000)
    block = torch.randint(0, 4000, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    blocks = [block] * 3 + [block[:17]] + [block] * 8  # the short one is padded

    def curve(name):
        model = AutoModelForCausalLM.from_pretrained(folder)
        entries = pretrain(
            model,
            blocks,
            0,
            tmp_path / name,
            trains="embeddings",
            old_rows=0,
            batch=2,
            learning_rate=1e-2,
            warmup_steps=1,
            weight_decay=0.1,
            seed=0,
            save_every=0,
        )
        return torch.tensor([entry["loss"] for entry in entries]), model

    ours, mine = curve("ours")
    monkeypatch.setattr(trainer, "has_plain_head", lambda *_: False)
    stock, theirs = curve("stock")
    assert len(ours) == 6
    assert ours[-1] < ours[0]
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-4)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_heads_that_cap_or_scale_keep_their_own_loss():
    import transformers

    from lepta.training.trainer import has_plain_head

    sizes = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": None}
    plain = {"Llama": True, "Qwen2": True, "Gemma2": False, "Cohere": False}
    for name, expected in plain.items():
        options = {"final_logit_softcapping": 0.05} if name == "Gemma2" else {}
        config = getattr(transformers, f"{name}Config")(**sizes, **heads, **options)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        assert has_plain_head(model, list(range(20))) == expected, name
