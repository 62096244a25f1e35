"""The linear map of Learned Embedding Propagation."""

import numpy as np
import pytest
import torch
from scipy import sparse

from lepta.core.errors import LeptaError
from lepta.embeddings.maps import METHODS, MapFitter
from lepta.embeddings.normal_equations import NormalEquations
from lepta.embeddings.transfer import Transfer, stand_in_rows, transfer_matrix
from lepta.vocabulary.change import VocabularyChange

WIDTH = 16
FITTED = ["overlap", "conversion"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def transfer(old, new):
    """From SmolLM2 to its Russian extension."""
    return transfer_matrix(old, new, old.size, new.size)


def random_matrix(rows, width=WIDTH, seed=0, dtype=torch.float64):
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def small_transfer(old_rows=60, new_rows=90, shared=40, seed=0):
    """A random T with unit rows for shared tokens and 1 / K rows for the others."""
    generator = np.random.default_rng(seed)
    matrix = sparse.lil_array((new_rows, old_rows))
    exact = np.full(new_rows, -1, dtype=np.int64)
    for row in range(new_rows):
        if row < shared:
            exact[row] = row
            matrix[row, row] = 1.0
        else:
            split = generator.integers(0, old_rows, size=generator.integers(2, 6))
            for column in split:
                matrix[row, column] += 1 / len(split)
    change = VocabularyChange(exact, np.flatnonzero(exact < 0))
    return Transfer(sparse.csr_array(matrix), change, exact)


def fit_map(method, transfer, base, instruct, stand_ins=None):
    return MapFitter(transfer, base, stand_ins).fit(method, instruct)


def overlap_rows(transfer):
    """T restricted to the tokens in both vocabularies; the other rows are empty."""
    return sparse.csr_array(sparse.diags_array((transfer.exact >= 0).astype(np.float64)) @ transfer.matrix)


def explicit_rows(method, transfer, matrix):
    chosen = overlap_rows(transfer) if method == "overlap" else transfer.matrix
    rows = chosen @ matrix.double().numpy()
    return rows[np.diff(chosen.indptr) > 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_variant_equal_to_the_base_gives_the_adapted_rows_bit_for_bit(transfer, old, new, method, dtype):
    base = random_matrix(old.size, dtype=dtype)
    adapted = random_matrix(new.size, seed=1, dtype=dtype)
    result = fit_map(method, transfer, base, base.clone()).apply(adapted).whole()
    assert result.dtype == dtype
    assert torch.equal(result.view(torch.uint8), adapted.view(torch.uint8))


@pytest.mark.parametrize("method", FITTED)
def test_linear_change_is_recovered(transfer, old, new, method):
    base, change = random_matrix(old.size), random_matrix(WIDTH, seed=2)
    fitted = fit_map(method, transfer, base, base @ change)
    np.testing.assert_allclose(fitted.offset.numpy() + np.eye(WIDTH), change, atol=1e-4)
    adapted = random_matrix(new.size, seed=1)
    np.testing.assert_allclose(fitted.apply(adapted).whole(), adapted @ change, atol=1e-4)
    assert fitted.residual < 1e-6 < fitted.residual_swap


@pytest.mark.parametrize("method", FITTED)
def test_linear_change_is_recovered_from_float32(transfer, old, method):
    base = random_matrix(old.size, dtype=torch.float32)
    change = random_matrix(WIDTH, seed=2, dtype=torch.float32)
    fitted = fit_map(method, transfer, base, base @ change)
    np.testing.assert_allclose(fitted.offset.numpy() + np.eye(WIDTH), change, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", FITTED)
def test_fit_agrees_with_lstsq_on_the_explicit_rows(method, seed):
    transfer = small_transfer(seed=seed)
    base = random_matrix(60, width=8, seed=seed)
    instruct = base + 0.3 * random_matrix(60, width=8, seed=seed + 10)
    x, y = (explicit_rows(method, transfer, matrix) for matrix in (base, instruct))
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    fitted = fit_map(method, transfer, base, instruct)
    np.testing.assert_allclose(fitted.offset.numpy() + np.eye(8), expected, atol=1e-6)
    assert fitted.rows == len(x)
    assert fitted.rank == 8
    scale = np.linalg.norm(y)
    assert fitted.residual == pytest.approx(np.linalg.norm(x @ expected - y) / scale, abs=1e-7)
    assert fitted.residual_swap == pytest.approx(np.linalg.norm(x - y) / scale, abs=1e-9)
    exact = np.linalg.cond(x.T @ x, 1)  # LAPACK estimates it, from below
    assert exact / 3 < fitted.condition < exact * 1.0001


@pytest.mark.parametrize("method", FITTED)
def test_fit_agrees_with_lstsq_on_a_real_transfer_matrix(transfer, old, method):
    base = random_matrix(old.size)
    instruct = base + 0.2 * random_matrix(old.size, seed=5)
    x, y = (explicit_rows(method, transfer, matrix) for matrix in (base, instruct))
    fitted = fit_map(method, transfer, base, instruct)
    np.testing.assert_allclose(fitted.offset.numpy() + np.eye(WIDTH), np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-6)


@pytest.mark.parametrize("method", FITTED)
def test_weights_count_in_the_fit_and_in_judging_it(method):
    transfer = small_transfer(old_rows=300, new_rows=500, shared=250)
    base = random_matrix(300, 6)
    instruct = base + 0.5 * random_matrix(300, 6, seed=1)
    weights = np.random.default_rng(1).uniform(0.1, 9, 500)
    fitter = MapFitter(transfer, base, weights=weights)
    fitted = fitter.fit(method, instruct)
    rows = (overlap_rows(transfer) if method == "overlap" else transfer.matrix) * np.sqrt(weights)[:, None]
    x, y = (rows @ matrix.numpy() for matrix in (base, instruct))
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(fitted.offset.numpy() + np.eye(6), expected, atol=1e-9)
    swap = fitter.fit("swap", instruct).held_out["error"]
    scale = np.sqrt(weights[fitter.held_out])[:, None]  # in this T, shared tokens keep their ids
    x, y = (scale * matrix.numpy()[fitter.held_out] for matrix in (base, instruct))
    assert swap == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(y))


def test_overlap_and_conversion_fit_different_rows():
    transfer = small_transfer()
    base, instruct = random_matrix(60, width=8), random_matrix(60, width=8, seed=1)
    overlap, conversion = (fit_map(method, transfer, base, instruct) for method in FITTED)
    assert (overlap.rows, conversion.rows) == (40, 90)
    assert (overlap.offset - conversion.offset).abs().max() > 0.01


@pytest.mark.parametrize("method", FITTED)
def test_rank_deficient_rows_stay_finite_and_leave_unseen_directions_alone(method):
    transfer = small_transfer()
    base = random_matrix(60, width=8)
    base[:, 6:] = 0  # two directions that no token has
    instruct = 2 * base
    fitted = fit_map(method, transfer, base, instruct)
    assert fitted.rank == 6
    assert torch.isfinite(fitted.offset).all()
    adapted = random_matrix(90, width=8, seed=1)
    result = fitted.apply(adapted).whole()
    np.testing.assert_allclose(result[:, :6], 2 * adapted[:, :6], atol=1e-9)
    np.testing.assert_allclose(result[:, 6:], adapted[:, 6:], atol=1e-9)


@pytest.mark.parametrize("method", FITTED)
def test_fewer_rows_than_width_stay_finite_and_fit_exactly(method):
    transfer = small_transfer(old_rows=5, new_rows=5, shared=5)
    base, instruct = random_matrix(5), random_matrix(5, seed=1)
    fitted = fit_map(method, transfer, base, instruct)
    assert fitted.rank == 5
    np.testing.assert_allclose(fitted.apply(base).whole(), instruct, atol=1e-6)


@pytest.mark.parametrize("method", FITTED)
def test_base_of_zeros_gives_a_finite_map_that_changes_nothing(method):
    transfer = small_transfer()
    fitted = fit_map(method, transfer, torch.zeros((60, 8)), random_matrix(60, width=8, dtype=torch.float32))
    adapted = random_matrix(90, width=8, seed=1)
    assert torch.equal(fitted.apply(adapted).whole(), adapted)
    assert fitted.rank == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_raise(method, which, value):
    matrices = [random_matrix(60, width=8), random_matrix(60, width=8, seed=1)]
    matrices[which][3, 4] = value
    with pytest.raises(LeptaError, match=f"{('base', 'instruct')[which]} embeddings: NaN or infinite"):
        fit_map(method, small_transfer(), *matrices)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shapes", [((60, 8), (60, 9)), ((60, 8), (59, 8)), ((59, 8), (60, 8))])
def test_shapes_that_do_not_match_raise(method, shapes):
    with pytest.raises(LeptaError, match="expected the same old vocabulary and width"):
        fit_map(method, small_transfer(), *(torch.ones(shape) for shape in shapes))


def test_unknown_method_raises():
    with pytest.raises(LeptaError, match="'rotate': unknown; known are swap, overlap, conversion"):
        fit_map("rotate", small_transfer(), torch.ones((60, 8)), torch.ones((60, 8)))


def test_overlap_of_vocabularies_that_share_nothing_raises():
    with pytest.raises(LeptaError, match="share no token"):
        fit_map("overlap", small_transfer(shared=0), torch.ones((60, 8)), torch.ones((60, 8)))


def test_swap_gives_a_copy():
    adapted = random_matrix(90, width=8)
    result = fit_map("swap", small_transfer(), torch.ones((60, 8)), torch.zeros((60, 8))).apply(adapted).whole()
    assert torch.equal(result, adapted)


@pytest.mark.parametrize("method", METHODS)
def test_rows_in_a_wider_dtype_are_not_rounded_to_that_of_the_adapted_model(transfer, old, new, method):
    base, instruct = (random_matrix(old.size, seed=seed, dtype=torch.float32) for seed in range(2))
    adapted = random_matrix(new.size, seed=2, dtype=torch.bfloat16)
    fitted = fit_map(method, transfer, base, instruct)
    wide = fitted.apply(adapted, torch.float32).whole()
    assert wide.dtype == torch.float32
    assert torch.equal(wide, fitted.apply(adapted.float()).whole())
    assert torch.equal(wide.bfloat16(), fitted.apply(adapted).whole())


def test_rows_beyond_those_of_the_transfer_matrix_do_not_count():
    transfer, base, instruct = small_transfer(), random_matrix(70, width=8), random_matrix(80, width=8, seed=1)
    longer, exact = (fit_map("conversion", transfer, *pair) for pair in ((base, instruct), (base[:60], instruct[:60])))
    assert torch.equal(longer.offset, exact.offset)


def test_summary_tells_the_distance_from_identity():
    transfer, base = small_transfer(), random_matrix(60, width=8)
    fitted = fit_map("conversion", transfer, base, 3 * base)
    assert fitted.summary()["distance_from_identity"] == pytest.approx(2.0)
    assert fit_map("swap", transfer, base, 3 * base).summary()["distance_from_identity"] == 0


def both_sides(rows, base, instruct):
    equations = NormalEquations(base, rows)
    return equations.left, equations.right(instruct, {})


def rotation(width=WIDTH, seed=3):
    return torch.linalg.qr(random_matrix(width, width, seed=seed))[0]


def test_ridge_has_overlap_and_swap_as_its_limits(transfer, old):
    base = random_matrix(old.size)
    instruct = base + 0.3 * random_matrix(old.size, seed=5)
    left, right = both_sides(overlap_rows(transfer), base, instruct)
    overlap = fit_map("overlap", transfer, base, instruct).offset
    np.testing.assert_allclose(left.solve(right.cross), overlap, atol=1e-12)
    assert np.abs(left.solve(right.cross, 1e9)).max() < 1e-6
    norms = [np.linalg.norm(left.solve(right.cross, strength)) for strength in (0.0, 0.1, 1.0, 10.0)]
    assert norms == sorted(norms, reverse=True)


def test_ridge_solves_its_equations(transfer, old):
    base = random_matrix(old.size)
    instruct = base + 0.3 * random_matrix(old.size, seed=5)
    x, y = (explicit_rows("conversion", transfer, matrix) for matrix in (base, instruct))
    strength = 0.5 * np.linalg.eigvalsh(x.T @ x).mean()
    expected = np.linalg.solve(x.T @ x + strength * np.eye(WIDTH), x.T @ y + strength * np.eye(WIDTH))
    left, right = both_sides(transfer.matrix, base, instruct)
    offset = left.solve(right.cross, 0.5)
    np.testing.assert_allclose(np.eye(WIDTH) + offset, expected, atol=1e-9)


def test_procrustes_recovers_a_rotation_and_nothing_else(transfer, old):
    base, turn = random_matrix(old.size), rotation()
    fitted = fit_map("procrustes", transfer, base, base @ turn)
    np.testing.assert_allclose(fitted.offset.numpy() + np.eye(WIDTH), turn, atol=1e-8)
    scaled = fit_map("procrustes", transfer, base, 3 * base @ turn).offset.numpy() + np.eye(WIDTH)
    np.testing.assert_allclose(scaled @ scaled.T, np.eye(WIDTH), atol=1e-8)


def test_delta_moves_each_row_as_the_old_rows_that_it_is_mixed_of():
    transfer = small_transfer()
    base, instruct, adapted = (random_matrix(rows, 8, seed) for rows, seed in ((60, 0), (60, 1), (90, 2)))
    result = fit_map("delta", transfer, base, instruct).apply(adapted).whole()
    np.testing.assert_allclose(result, adapted + transfer.matrix @ (instruct - base).numpy(), atol=1e-12)


def test_anchored_maps_what_training_changed_and_leaves_the_variants_own_rows_alone(transfer, old, new):
    base, instruct = random_matrix(old.size), random_matrix(old.size, seed=1)
    fitted = fit_map("anchored", transfer, base, instruct, stand_in_rows(old, old.size))
    start, own = (torch.from_numpy(transfer.matrix @ matrix.numpy()) for matrix in (base, instruct))
    trained = 0.1 * random_matrix(new.size, seed=2)
    trained[torch.from_numpy(transfer.exact >= 0)] = 0  # as if new rows alone had trained
    result = fitted.apply(start + trained).whole()
    np.testing.assert_allclose(result, own + trained @ (fitted.offset + torch.eye(WIDTH)), atol=1e-12)
    shared = np.flatnonzero(transfer.exact >= 0)
    np.testing.assert_allclose(result[shared], instruct[transfer.exact[shared]], atol=1e-12)


def test_anchored_is_judged_by_tokens_as_if_they_were_new(transfer, old):
    base, instruct = random_matrix(old.size), random_matrix(old.size, seed=1)
    stand_ins = stand_in_rows(old, old.size)
    fitter = MapFitter(transfer, base, stand_ins)
    found = fitter.fit("anchored", instruct)
    tokens = fitter.held_out
    shared = transfer.exact[transfer.exact >= 0]
    seen = shared[~np.isin(shared, tokens)]
    x, y = base.numpy()[seen], instruct.numpy()[seen]
    gram = x.T @ x
    drawn = gram + found.strength * np.trace(gram) / WIDTH * np.eye(WIDTH)
    step = np.linalg.solve(drawn, x.T @ (y - x)) + np.eye(WIDTH)
    parts = stand_ins[tokens]
    predicted = parts @ instruct.numpy() + (base.numpy()[tokens] - parts @ base.numpy()) @ step
    missed = np.linalg.norm(predicted - instruct.numpy()[tokens]) / np.linalg.norm(instruct.numpy()[tokens])
    assert found.held_out["error"] == pytest.approx(missed, rel=1e-6)
    assert (
        found.held_out["error"]
        <= found.held_out["errors"]["anchored"]
        <= 1.0001 * fitter.fit("delta", instruct).held_out["error"]
    )


def test_ridge_predicts_held_out_tokens_better_than_its_limits_if_most_of_the_change_is_noise(transfer, old):
    base = random_matrix(old.size, 64)
    instruct = base + 0.02 * base @ random_matrix(64, 64, seed=4) + 3 * random_matrix(old.size, 64, seed=5)
    errors = fit_map("auto", transfer, base, instruct).held_out["errors"]
    assert errors["ridge"] < min(errors["swap"], errors["overlap"], errors["conversion"], errors["procrustes"])
    assert not {"delta", "anchored"} & set(errors)


def test_held_out_error_is_that_of_a_fit_that_never_saw_the_tokens():
    transfer = small_transfer(old_rows=300, new_rows=500, shared=250)
    base = random_matrix(300, 6)
    instruct = base + 0.5 * random_matrix(300, 6, seed=1)
    fitter = MapFitter(transfer, base)
    held_out = fitter.fit("conversion", instruct).held_out
    assert held_out["tokens"] == len(fitter.held_out) == 25
    rows = transfer.matrix.toarray()
    seen = rows[(rows[:, fitter.held_out] == 0).all(axis=1)]
    fitted = np.linalg.lstsq(seen @ base.numpy(), seen @ instruct.numpy(), rcond=None)[0]
    x, y = base.numpy()[fitter.held_out], instruct.numpy()[fitter.held_out]
    missed = np.linalg.norm(x @ fitted - y)
    assert held_out["error"] == pytest.approx(missed / np.linalg.norm(y), abs=1e-9)
    assert held_out["r2"] == pytest.approx(1 - (missed / np.linalg.norm(y - y.mean(axis=0))) ** 2, abs=1e-9)


def test_auto_takes_the_method_of_the_least_error_over_the_whole_vocabulary(transfer, old):
    base = random_matrix(old.size)
    stand_ins = stand_in_rows(old, old.size)
    linear = fit_map("auto", transfer, base, base @ random_matrix(WIDTH, seed=2), stand_ins)
    errors, whole = linear.held_out["errors"], linear.held_out["whole"]
    assert linear.method == min(whole, key=whole.get) != "swap"
    mixed = (transfer.exact < 0).mean()
    assert whole == errors | {name: pytest.approx(errors[name] * mixed**0.5) for name in ("delta", "anchored")}
    assert linear.held_out["error"] == errors[linear.method]
    assert set(errors) == set(METHODS)
    # a change that a token shares with the tokens that merge into it, and that no linear map can tell
    change = torch.ones((old.size, WIDTH))
    shifted = fit_map("auto", transfer, base, base + 5 * change, stand_ins)
    assert shifted.method in ("delta", "anchored")
    assert shifted.held_out["error"] < 1e-9


def test_stand_ins_are_the_two_tokens_that_merge_into_a_token(old):
    rows = stand_in_rows(old, old.size)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    for token in (5_000, 20_000, 40_000):
        pieces = [old.bytes_of[i] for i in rows[[token]].indices]
        assert old.bytes_of[token] in {b"".join(order) for order in (pieces, pieces[::-1], pieces * 2)}


def test_too_few_shared_tokens_to_hold_some_out_raise():
    with pytest.raises(LeptaError, match="share 40 tokens, too few"):
        fit_map("ridge", small_transfer(), random_matrix(60, 8), random_matrix(60, 8, seed=1))
