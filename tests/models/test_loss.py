"""Cross-entropy without logits."""

import pytest
import torch

from lepta.models import loss as module
from lepta.models.loss import IGNORED, linear_cross_entropy


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


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 2)])
def test_a_head_in_parts_is_the_whole_head(frozen):
    hidden, weight, labels, bias = problem()
    expected = linear_cross_entropy(hidden, weight, labels, bias, 10)
    of_hidden, of_weight = torch.autograd.grad(expected, [hidden, weight])
    parts = [part.detach().clone().requires_grad_(n not in frozen) for n, part in enumerate(weight.split([20, 1, 32]))]
    found = linear_cross_entropy(hidden, parts, labels, bias, torch.tensor(10))
    torch.testing.assert_close(found, expected)
    found.backward()
    torch.testing.assert_close(hidden.grad, of_hidden)
    for n, (part, gradient) in enumerate(zip(parts, of_weight.split([20, 1, 32]), strict=True)):
        if n in frozen:
            assert part.grad is None
        else:
            torch.testing.assert_close(part.grad, gradient)


def test_logits_beyond_all_bounds_give_no_nan():
    hidden, weight, labels, _ = problem(torch.float32)
    weight.data *= 1e4
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, ignore_index=IGNORED)
    found = linear_cross_entropy(hidden, weight, labels)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert torch.isfinite(weight.grad).all()


def test_autocast_multiplies_in_16_bits_and_sums_in_32():
    hidden, weight, labels, _ = problem(torch.float32, rows=200)
    expected = linear_cross_entropy(hidden, weight, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, labels)
    assert found.dtype == torch.float32
    assert found != expected
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    found.backward()
    assert weight.grad.dtype == torch.float32


def test_heads_that_cap_or_scale_have_the_same_loss():
    import transformers

    from lepta.models.loss import LogitRule, logit_rule, patch_chunked_loss

    sizes = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": None}
    rules = {"Llama": LogitRule(), "Qwen2": LogitRule(), "Gemma2": LogitRule(cap=0.05), "Cohere": LogitRule(0.0625)}
    for name, rule in rules.items():
        options = {"final_logit_softcapping": 0.05} if name == "Gemma2" else {}
        config = getattr(transformers, f"{name}Config")(**sizes, **heads, **options)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        assert logit_rule(model) == rule, name
        ids = torch.arange(20)[None]
        before = model(input_ids=ids, labels=ids).loss
        patch_chunked_loss(model)
        after = model(input_ids=ids, labels=ids)
        torch.testing.assert_close(after.loss, before)
        assert "logits" not in after and not model.keeps_own_loss


def test_other_heads_keep_their_own_loss(monkeypatch):
    import transformers

    monkeypatch.setattr(module, "logit_rule", lambda model: None)
    sizes = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(20)[None]
    before = model(input_ids=ids, labels=ids)
    module.patch_chunked_loss(model)
    assert model.keeps_own_loss and torch.equal(model(input_ids=ids, labels=ids).loss, before.loss)


@pytest.mark.parametrize("grad", [True, False])
def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch, grad):
    added = []
    monkeypatch.setattr(module._Gradients, "add", lambda *arguments: added.append(arguments))
    hidden, weight, labels, bias = problem()
    with torch.set_grad_enabled(grad):
        linear_cross_entropy(hidden, weight, labels, bias)
    assert bool(added) == grad


def test_float16_keeps_small_gradients_and_takes_a_large_scale():
    """As in a step of a quarter of a million tokens at the scale that a GradScaler begins with, 65,536."""
    hidden, weight, labels, _ = problem(torch.float32, rows=64)
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels, None, 1), [hidden, weight])
    half, divisor = hidden.detach().half().requires_grad_(), torch.tensor(262_144)
    with torch.autocast("cpu", torch.float16):
        loss = linear_cross_entropy(half, weight, labels, None, divisor)
    found = torch.autograd.grad(65_536.0 * loss, [half, weight])
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.float() / 65_536 * divisor, exact, rtol=2e-2, atol=2e-3)
