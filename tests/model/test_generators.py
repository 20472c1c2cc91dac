"""Both generators: shapes, the norm of A, what it depends on, and that no trained parameter is idle."""

from typing import Any

import pytest
import torch
from torch import nn

from cora import CoRAConfig
from cora.generators import build_generator

WIDTHS = [24, 40]
KINDS: dict[str, dict[str, Any]] = {
    "joint": dict(generator="qformer", tokens="joint"),
    "pair": dict(generator="qformer", tokens="pair"),
    "one-query": dict(generator="qformer", tokens="pair", num_queries=1, width=16),
    "mlp": dict(generator="mlp"),
}


@pytest.fixture(params=KINDS)
def generator(request: pytest.FixtureRequest) -> nn.Module:
    sizes: dict[str, Any] = dict(r=3, num_blocks=2, num_heads=4, ffn_size=32, hidden_size=16)
    return build_generator(CoRAConfig(**(sizes | KINDS[request.param])), 12, WIDTHS)


def test_every_sample_has_unit_frobenius_norm(generator: nn.Module) -> None:
    e_u, e_i = 10 * torch.randn(5, 12), 0.01 * torch.randn(5, 12)
    made = generator.eval()(e_u, e_i, e_u[:, 0])
    assert {width: a.shape for width, a in made.items()} == {width: (5, width, 3) for width in WIDTHS}
    for a in made.values():
        torch.testing.assert_close(a.flatten(1).norm(dim=1), torch.ones(5), atol=1e-6, rtol=0)


def test_a_depends_on_user_and_on_item(generator: nn.Module) -> None:
    e_u, e_i = torch.randn(2, 12), torch.randn(2, 12)
    generator.eval()
    first = generator(e_u, e_i, e_u[:, 0])[24]
    assert (first - generator(e_u.flip(0), e_i, e_u[:, 0])[24]).abs().max() > 1e-5
    assert (first - generator(e_u, e_i.flip(0), e_u[:, 0])[24]).abs().max() > 1e-5


def test_samples_do_not_see_each_other(generator: nn.Module) -> None:
    e_u, e_i = torch.randn(4, 12), torch.randn(4, 12)
    generator.eval()
    together = generator(e_u, e_i, e_u[:, 0])[40]
    alone = torch.cat([generator(e_u[i : i + 1], e_i[i : i + 1], e_u[i : i + 1, 0])[40] for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_every_trained_parameter_receives_a_gradient_and_the_frozen_ones_are_idle(generator: nn.Module) -> None:
    e_u, e_i = torch.randn(3, 12), torch.randn(3, 12)
    generator.eval()
    frozen = [parameter for parameter in generator.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    sum((torch.randn_like(a) * a).sum() for a in generator(e_u, e_i, e_u[:, 0]).values()).backward()
    largest = max(parameter.grad.abs().max() for parameter in generator.parameters())
    for name, parameter in generator.named_parameters():
        size = parameter.grad.abs().max()
        if any(parameter is idle for idle in frozen):
            assert size < 1e-6 * largest, name
        else:
            assert size > 1e-6 * largest, name


def test_published_sizes() -> None:
    generator = build_generator(CoRAConfig(generator="qformer"), 256, [576])
    blocks = generator.qformer.encoder.layer
    assert generator.queries.shape == (4, 512)
    assert abs(generator.queries.std().item() - 0.02) < 2e-3
    assert len(blocks) == 8 and all(block.has_cross_attention for block in blocks)
    assert blocks[0].intermediate_query.dense.out_features == 3072


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads: expected a divisor of the generator's width 24, got 7"):
        build_generator(CoRAConfig(generator="qformer", num_heads=7), 12, WIDTHS)
