"""The gate and what it mixes: the same as plain LoRAs wherever it must be, in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cora.generators.gated import GatedGenerator, GatedOptions

DIM, R, SCALING = 6, 3, 2.0
LINEARS = {
    "layers.0.q_proj": nn.Linear(10, 12),
    "layers.0.v_proj": nn.Linear(10, 7),
    "layers.1.q_proj": nn.Linear(9, 8),
}
MIXES = pytest.mark.parametrize("mix", ["factors", "outputs"])


def build(trained: bool = True, **options: Any) -> GatedGenerator:
    torch.manual_seed(0)
    made = GatedGenerator(GatedOptions(**(dict(meta_loras=4, gate_width=16) | options)), DIM, LINEARS, R, SCALING)
    if trained:
        for matrix in made.lora_bs:
            nn.init.normal_(matrix)
    return made.double().eval()


def pair(samples: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    return tuple(torch.randn(samples, *rest, dtype=torch.float64) for rest in ((DIM,), (DIM,), ()))  # type: ignore


def changes(made: GatedGenerator, told: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """ΔW of every sample [B, K, N] by linear."""
    return {
        name: (one.scaling * one.lora_a @ one.lora_b).expand(len(told[0]), -1, -1) for name, one in made(*told).items()
    }


def choose(made: GatedGenerator, scores: list[float]) -> None:
    """Has every gate give these scores, whatever it reads."""
    for gate in made.gates:
        nn.init.zeros_(gate[-1].weight)
        gate[-1].bias.data = torch.tensor(scores, dtype=torch.float64)


@MIXES
def test_a_gate_that_chooses_one_is_that_plain_lora_with_its_gradients(mix: str) -> None:
    made, told = build(mix=mix), pair()
    choose(made, [0, 0, 1e9, 0])
    ours = changes(made, told)
    sum((one * torch.arange(one.numel()).view_as(one).sin()).sum() for one in ours.values()).backward()
    for name, a, b in zip(LINEARS, made.lora_as, made.lora_bs, strict=True):
        plain_a, plain_b = (one.detach()[2].clone().requires_grad_() for one in (a, b))
        theirs = (SCALING * plain_a @ plain_b).expand_as(ours[name])
        torch.testing.assert_close(ours[name], theirs)
        (theirs * torch.arange(theirs.numel()).view_as(theirs).sin()).sum().backward()
        torch.testing.assert_close(a.grad[2], plain_a.grad)
        torch.testing.assert_close(b.grad[2], plain_b.grad)
        assert not a.grad[[0, 1, 3]].any() and not b.grad[[0, 1, 3]].any()


@MIXES
def test_one_meta_lora_is_plain_lora_whatever_the_pair(mix: str) -> None:
    made = build(mix=mix, meta_loras=1)
    assert all(name.startswith("lora_") for name, _ in made.named_parameters()) and made.spread(*pair()) == {}
    for change, a, b in zip(changes(made, pair()).values(), made.lora_as, made.lora_bs, strict=True):
        torch.testing.assert_close(change, (SCALING * a[0] @ b[0]).expand_as(change))


def test_even_weights_mix_to_the_mean_factors() -> None:
    made = build()
    choose(made, [1, 1, 1, 1])
    for change, a, b in zip(changes(made, pair()).values(), made.lora_as, made.lora_bs, strict=True):
        torch.testing.assert_close(change, (SCALING * a.mean(0) @ b.mean(0)).expand_as(change))


@MIXES
def test_the_order_of_the_meta_loras_means_nothing(mix: str) -> None:
    made, order = build(mix=mix), torch.tensor([2, 0, 3, 1])
    before = changes(made, pair())
    for a, b, gate in zip(made.lora_as, made.lora_bs, made.gates, strict=True):
        for one in (a, b, gate[-1].weight, gate[-1].bias):
            one.data = one.data[order]
    for name, change in changes(made, pair()).items():
        torch.testing.assert_close(change, before[name])


def test_mixed_first_is_the_sum_over_all_pairs_of_meta_loras_with_its_gradients() -> None:
    """x·A_j for all j, reduced by α, then expanded by α through all B_k, as the concatenated form has it."""
    made, told = build(), pair()
    x = {name: torch.randn(5, 4, one.in_features, dtype=torch.float64) for name, one in LINEARS.items()}
    target = {name: torch.randn(5, 4, one.out_features, dtype=torch.float64) for name, one in LINEARS.items()}

    def gradients(outputs: dict[str, Tensor]) -> list[Tensor]:
        loss = sum(((one - target[name]) ** 2).sum() for name, one in outputs.items())
        return list(torch.autograd.grad(loss, list(made.parameters())))

    first = {name: one.scaling * x[name] @ one.lora_a @ one.lora_b for name, one in made(*told).items()}
    whole = {
        name: SCALING * torch.einsum("btk,bj,jkr,bi,irn->btn", x[name], alpha, a, alpha, b)
        for (name, alpha), a, b in zip(made.weights(*told).items(), made.lora_as, made.lora_bs, strict=True)
    }
    for name in LINEARS:
        torch.testing.assert_close(first[name], whole[name])
    for ours, theirs in zip(gradients(first), gradients(whole), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_outputs_are_the_weighted_sum_of_separate_loras() -> None:
    made, told = build(mix="outputs"), pair()
    alphas, ours = made.weights(*told), changes(made, told)
    for name, a, b in zip(LINEARS, made.lora_as, made.lora_bs, strict=True):
        torch.testing.assert_close(ours[name], SCALING * torch.einsum("bk,kir,krn->bin", alphas[name], a, b))


def test_rank() -> None:
    for mix, rank in (("factors", R), ("outputs", 2 * R)):
        change = changes(build(mix=mix, meta_loras=2), pair())["layers.0.q_proj"]
        assert torch.linalg.matrix_rank(change).tolist() == [rank] * 5


@MIXES
def test_a_batch_is_its_samples_one_by_one(mix: str) -> None:
    made, told = build(mix=mix, gate_top=2), pair()
    together = changes(made, told)
    for row in range(5):
        alone = changes(made, tuple(one[row : row + 1] for one in told))
        for name in LINEARS:
            torch.testing.assert_close(together[name][row : row + 1], alone[name])


@MIXES
def test_at_the_start_only_the_bs_learn_and_then_everything_does(mix: str) -> None:
    made, told = build(trained=False, mix=mix), pair()

    def reached() -> set[str]:
        made.zero_grad()
        sum((one - 1).square().sum() for one in changes(made, told).values()).backward()
        return {name for name, one in made.named_parameters() if one.grad is not None and one.grad.any()}

    assert not any(one.any() for one in changes(made, told).values())
    assert reached() == {f"lora_bs.{row}" for row in range(3)}
    torch.optim.SGD(made.parameters(), lr=1e-2).step()
    assert reached() == {name for name, _ in made.named_parameters()}


def test_the_best_few_alone_are_used() -> None:
    made, told = build(gate_top=2), pair(50)
    for name, every in build().weights(*told).items():
        few = made.weights(*told)[name]
        assert (few > 0).sum(1).tolist() == [2] * 50
        torch.testing.assert_close(few.sum(1), torch.ones(50, dtype=torch.float64))
        best = every.topk(2).indices
        kept = every.gather(1, best)
        torch.testing.assert_close(few.gather(1, best), kept / kept.sum(1, keepdim=True))


def test_a_cold_gate_chooses_one_and_a_hot_one_all_alike() -> None:
    told = pair(20)
    for alpha in build(gate_temperature=1e-9).weights(*told).values():
        torch.testing.assert_close(alpha.amax(1), torch.ones(20, dtype=torch.float64))
    for alpha in build(gate_temperature=1e9).weights(*told).values():
        torch.testing.assert_close(alpha, torch.full((20, 4), 0.25, dtype=torch.float64))


def test_a_collapse_is_told() -> None:
    made, told = build(), pair()
    assert 0 < made.spread(*told)["gate_entropy"] < 1 and abs(made.spread(*told)["b_cosine"]) < 0.5
    choose(made, [0.0] * 4)
    for matrix in made.lora_bs:
        matrix.data[:] = matrix.data[:1].clone()
    assert made.spread(*told) == pytest.approx({"gate_entropy": 1, "b_cosine": 1})
    choose(made, [0, 1e9, 0, 0])
    assert made.spread(*told)["gate_entropy"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(meta_loras=0), "meta_loras: expected a whole number from 1, got 0"),
        (dict(mix="both"), "mix: expected one of factors, outputs, got 'both'"),
        (dict(gate_temperature=0), "gate_temperature: expected a positive number, got 0"),
        (dict(gate_temperature=math.inf), "gate_temperature: expected a positive number, got inf"),
        (dict(gate_temperature=True), "gate_temperature: expected a positive number, got True"),
        (dict(gate_top=5), "gate_top: expected at most meta_loras 4, got 5"),
        (dict(gate_top=-1), "gate_top: expected a whole number from 0, got -1"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
