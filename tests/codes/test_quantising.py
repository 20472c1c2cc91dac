"""From vectors to codes: balance, straight-through gradients, one start, codes that nobody shares."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cora.codes import RQVAE, Recipe, train_rqvae, unique_codes
from cora.codes.assign import random_codes
from cora.codes.quantiser import ResidualQuantiser
from cora.codes.sinkhorn import balanced, sinkhorn
from cora.codes.vectors import standardised


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def clusters(items: int = 60, width: int = 6) -> torch.Tensor:
    """Vectors of which most lie in one of a few places."""
    centres = 3 * torch.randn(4, width)
    return centres[torch.randint(0, 4, (items,)).square() // 3] + 0.3 * torch.randn(items, width)


def quantiser(z: torch.Tensor, levels: int = 2, codes: int = 8, epsilon: float = 0.003) -> ResidualQuantiser:
    made = ResidualQuantiser(levels, codes, z.shape[1], epsilon)
    made.start(z, seed=0)
    return made


@pytest.mark.parametrize("epsilon", [0.001, 0.003, 0.05, 1.0])
def test_columns_sum_to_the_share_of_each_code(epsilon: float) -> None:
    q = sinkhorn(torch.rand(40, 8) ** 3, epsilon)
    assert q.dtype == torch.float64 and bool(q.isfinite().all())
    torch.testing.assert_close(q.sum(0), torch.full((8,), 40 / 8, dtype=torch.float64))


def test_the_log_domain_is_the_plain_one() -> None:
    distances, epsilon = torch.rand(30, 5).double(), 0.05
    middle, half = (distances.max() + distances.min()) / 2, (distances.max() - distances.min()) / 2
    q = torch.exp(-(distances - middle) / half / epsilon)
    for _ in range(50):
        q = q / q.sum(1, keepdim=True) / 30
        q = q / q.sum(0, keepdim=True) / 5
    torch.testing.assert_close(sinkhorn(distances, epsilon), 30 * q, rtol=1e-9, atol=1e-12)


def test_balanced_codes_are_used_more_evenly_than_nearest_ones() -> None:
    z = clusters()
    distances = torch.cdist(z, z[:8]).square()
    counts = [torch.bincount(balanced(distances, epsilon), minlength=8).double() for epsilon in (0.0, 0.003)]
    assert counts[1].std() < 0.8 * counts[0].std()


def test_epsilon_zero_is_the_nearest_and_so_is_a_small_one_where_that_is_balanced() -> None:
    distances = torch.rand(16, 4)
    assert torch.equal(balanced(distances, 0.0), distances.argmin(1))
    wanted = torch.arange(16) % 4
    distances[torch.arange(16), wanted] = -1.0
    assert torch.equal(balanced(distances, 1e-4), wanted)


def test_equal_distances_are_balanced_too() -> None:
    assert bool(sinkhorn(torch.ones(4, 2), 0.003).isfinite().all())


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan")])
def test_no_such_epsilon(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon: expected a positive number"):
        sinkhorn(torch.rand(3, 2), epsilon)


def test_the_gradient_of_z_is_that_of_what_is_quantised() -> None:
    z = clusters().requires_grad_()
    found = quantiser(z.detach()).eval()(z)
    weight = torch.randn_like(z)
    (found.z_q * weight).sum().backward()
    assert z.grad is not None and torch.equal(z.grad, weight)


def test_what_is_quantised_is_the_sum_of_its_codes_vectors() -> None:
    z = clusters()
    made = quantiser(z, levels=3).eval()
    found = made(z)
    total = sum(made.codebooks[level][found.codes[:, level]] for level in range(3))
    torch.testing.assert_close(found.z_q, total)
    residual = z
    for level in range(3):
        assert torch.equal(found.codes[:, level], made.distances(residual, level).argmin(1))
        residual = residual - made.codebooks[level][found.codes[:, level]]


def test_k_means_starts_once_after_save_and_load_too(tmp_path: Path) -> None:
    z = clusters()
    made = quantiser(z)
    before = made.codebooks.detach().clone()
    made.start(10 * z, seed=1)
    assert torch.equal(made.codebooks, before)
    save_file(dict(made.state_dict()), tmp_path / "q.safetensors")
    again = ResidualQuantiser(2, 8, z.shape[1])
    again.load_state_dict(load_file(tmp_path / "q.safetensors"))
    again.start(10 * z, seed=1)
    assert torch.equal(again.codebooks, before)


def test_k_means_needs_as_many_vectors_as_codes() -> None:
    with pytest.raises(ValueError, match="codes: expected at most as many as there are vectors, 5, got 8"):
        quantiser(torch.randn(5, 3))


def test_training_lowers_the_loss_and_the_same_seed_gives_the_same_codes() -> None:
    vectors, recipe = (
        standardised(clusters(80, 10)),
        Recipe(levels=2, codes=16, hidden=(16,), dim=4, steps=60, learning_rate=1e-2),
    )
    state = torch.random.get_rng_state()
    model, losses = train_rqvae(vectors, recipe, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    again, others = train_rqvae(vectors, recipe, seed=3)
    assert losses == others and all(
        torch.equal(*two) for two in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert not model.training and bool(model.quantiser.started)


def test_codebooks_and_encoder_get_gradients() -> None:
    vectors = clusters(40, 10)
    model = RQVAE(10, Recipe(levels=2, hidden=(16,), dim=4), codes=4)
    with torch.no_grad():
        model.quantiser.start(model.encoder(vectors), seed=0)
    model(vectors)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_unique_codes_are_the_nearest_where_those_are_unique() -> None:
    z = torch.randn(12, 6)
    made = quantiser(z, levels=2, codes=12)
    nearest = made.eval()(z).codes
    assert len(torch.unique(nearest, dim=0)) == 12
    assert torch.equal(unique_codes(z, made.codebooks.detach()), nearest)


@pytest.mark.parametrize("kind", ["clusters", "identical", "full"])
def test_no_two_items_have_the_same_codes(kind: str) -> None:
    z = {"clusters": clusters(), "identical": torch.ones(30, 6), "full": clusters(64)}[kind]
    codebooks = quantiser(clusters(64), levels=3, codes=4).codebooks.detach()
    codes = unique_codes(z, codebooks)
    assert codes.shape == (len(z), 3) and int(codes.min()) >= 0 and int(codes.max()) < 4
    assert len(torch.unique(codes, dim=0)) == len(z)
    assert torch.equal(codes, unique_codes(z, codebooks))


def test_those_farthest_from_a_full_code_go_to_their_next_nearest() -> None:
    # One code can have two items; three are nearest to code 0, and the third of them is the farthest.
    codebooks = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]])
    codes = unique_codes(torch.tensor([[0.1], [2.0], [-0.2]]), codebooks)
    assert codes[:, 0].tolist() == [0, 1, 0]


def test_more_items_than_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="items: 2 levels of 4 codes tell 16 apart, got 17"):
        unique_codes(torch.randn(17, 3), torch.randn(2, 4, 3))


@pytest.mark.parametrize(
    ("items", "changes", "expected"),
    [(1682, {}, 32), (3706, {}, 32), (12101, dict(levels=4), 32), (5, {}, 4), (3, {}, 3), (100, dict(codes=7), 7)],
)
def test_codes_for_a_catalogue(items: int, changes: dict[str, int], expected: int) -> None:
    assert Recipe(**changes).codes_for(items) == expected


def test_codes_that_cannot_tell_the_items_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="levels, codes: 2 levels of 8 codes tell 64 items apart, there are 65"):
        Recipe(levels=2, codes=8).codes_for(65)
    with pytest.raises(ValueError, match="codes: expected at most as many as there are items, 9, got 10"):
        Recipe(codes=10).codes_for(9)


@pytest.mark.parametrize("change", [dict(levels=0), dict(codes=-1), dict(steps=1.5), dict(epsilon=-1), dict(hidden=())])
def test_recipe_errors_name_the_field(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Recipe(**change)  # type: ignore[arg-type]


def test_vectors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="vectors: expected finite numbers"):
        train_rqvae(torch.full((8, 3), float("nan")), Recipe(levels=1, codes=8))


def test_random_codes_are_different_and_of_the_seed() -> None:
    codes = random_codes(64, 3, 4, seed=0)
    assert len(torch.unique(codes, dim=0)) == 64 and int(codes.max()) == 3
    assert torch.equal(codes, random_codes(64, 3, 4, seed=0))
    assert not torch.equal(codes, random_codes(64, 3, 4, seed=1))
    assert len(torch.unique(random_codes(100, 4, 256, seed=0), dim=0)) == 100
