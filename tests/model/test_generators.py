"""Every generator: shapes, the norm of A, what it depends on, and that no trained parameter is idle."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cora import CoRAConfig
from cora.generators import GENERATORS, Generator, generator_class

LINEARS = {
    f"model.layers.{layer}.{name}": nn.Linear(width_in, width_out)
    for layer in range(2)
    for name, width_in, width_out in (("q_proj", 24, 20), ("k_proj", 24, 8), ("down_proj", 40, 24))
}
KINDS: dict[str, dict[str, Any]] = {
    "joint": dict(generator="qformer", tokens="joint"),
    "pair": dict(generator="qformer", tokens="pair"),
    "one-query": dict(generator="qformer", tokens="pair", num_queries=1, width=16),
    "mlp": dict(generator="mlp"),
    "per-layer": dict(generator="per_layer", query_width=16),
    "gated": dict(generator="gated", meta_loras=4, gate_width=16),
}
OWN_A = ("PerLayerGenerator", "GatedGenerator")  # an A of its own for every layer and module


def build(**changes: Any) -> Generator:
    sizes: dict[str, Any] = dict(r=3, num_blocks=2, num_heads=4, ffn_size=32, hidden_size=16)
    config = CoRAConfig(**(sizes | changes))
    generator = generator_class(config.generator)(config.options, 12, LINEARS, config.r, config.scaling)
    for name, parameter in generator.named_parameters():
        if "p.matrices" in name or "lora_bs" in name:
            nn.init.normal_(parameter)
    return generator


@pytest.fixture(params=KINDS)
def generator(request: pytest.FixtureRequest) -> Generator:
    return build(**KINDS[request.param])


def test_every_linear_has_a_delta_that_fits_it(generator: Generator) -> None:
    deltas = generator.eval()(torch.randn(5, 12), torch.randn(5, 12), torch.randn(5))
    assert deltas.keys() == LINEARS.keys()
    for name, delta in deltas.items():
        assert delta.lora_a.shape == (5, LINEARS[name].in_features, 3), name
        assert delta.lora_b.shape[-2:] == (3, LINEARS[name].out_features) and delta.batch == 5, name
        assert delta.scaling == 2.0


def test_every_delta_is_zero_at_the_start() -> None:
    for name in GENERATORS:
        generator = generator_class(name)(generator_class(name).Options(), 16, LINEARS, 3, 2.0)
        deltas = generator(torch.randn(2, 16), torch.randn(2, 16), torch.randn(2))
        assert not any((delta.lora_a @ delta.lora_b).any() for delta in deltas.values()), name


def test_every_sample_has_unit_frobenius_norm(generator: Generator) -> None:
    e_u, e_i = 10 * torch.randn(5, 12), 0.01 * torch.randn(5, 12)
    made = generator.eval()(e_u, e_i, e_u[:, 0])
    norms = torch.stack([delta.lora_a.flatten(1).norm(dim=1) for delta in made.values()])
    if type(generator).__name__ in OWN_A:  # not normalised, as in VLoRA, but of about that size at the start
        assert 0.4 < norms.mean() < 2 and norms.std() > 1e-3
    else:
        torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-6, rtol=0)


def test_layers_share_one_a_or_have_one_each(generator: Generator) -> None:
    made = generator.eval()(torch.randn(2, 12), torch.randn(2, 12), torch.randn(2))
    first, second, other = (made[f"model.layers.{name}"].lora_a for name in ("0.q_proj", "1.q_proj", "0.k_proj"))
    if type(generator).__name__ in OWN_A:
        assert (first - second).abs().max() > 1e-4 and (first - other).abs().max() > 1e-4
    else:
        assert first is second is other


def test_a_depends_on_user_and_on_item(generator: Generator) -> None:
    e_u, e_i = torch.randn(2, 12), torch.randn(2, 12)
    generator.eval()
    first = generator(e_u, e_i, e_u[:, 0])["model.layers.0.q_proj"].lora_a
    assert (first - generator(e_u.flip(0), e_i, e_u[:, 0])["model.layers.0.q_proj"].lora_a).abs().max() > 1e-5
    assert (first - generator(e_u, e_i.flip(0), e_u[:, 0])["model.layers.0.q_proj"].lora_a).abs().max() > 1e-5


def test_samples_do_not_see_each_other(generator: Generator) -> None:
    e_u, e_i = torch.randn(4, 12), torch.randn(4, 12)
    generator.eval()

    def down(rows: slice) -> Tensor:
        return generator(e_u[rows], e_i[rows], e_u[rows, 0])["model.layers.1.down_proj"].lora_a

    alone = torch.cat([down(slice(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(down(slice(4)), alone, atol=1e-6, rtol=0)


def test_every_trained_parameter_receives_a_gradient_and_the_frozen_ones_are_idle(generator: Generator) -> None:
    e_u, e_i = torch.randn(3, 12), torch.randn(3, 12)
    generator.eval()
    frozen = [parameter for parameter in generator.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    deltas = generator(e_u, e_i, e_u[:, 0])
    sum(
        ((d.lora_a @ d.lora_b) * torch.randn(3, *d.lora_a.shape[1:2], d.lora_b.shape[-1])).sum()
        for d in deltas.values()
    ).backward()
    largest = max(parameter.grad.abs().max() for parameter in generator.parameters())
    for name, parameter in generator.named_parameters():
        size = parameter.grad.abs().max()
        if any(parameter is idle for idle in frozen):
            assert size < 1e-6 * largest, name
        else:
            assert size > 1e-6 * largest, name


def test_published_sizes() -> None:
    generator = generator_class("qformer")(CoRAConfig(generator="qformer").options, 256, LINEARS, 16, 2.0)
    blocks = generator.qformer.encoder.layer
    assert generator.queries.shape == (4, 512)
    assert abs(generator.queries.std().item() - 0.02) < 2e-3
    assert len(blocks) == 8 and all(block.has_cross_attention for block in blocks)
    assert blocks[0].intermediate_query.dense.out_features == 3072


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (dict(generator="qformer", num_heads=7), "num_heads: expected a divisor of the generator's width 24, got 7"),
        (dict(generator="per_layer", decoder_heads=5), "decoder_heads: expected a divisor of query_width 64, got 5"),
    ],
    ids=["qformer", "per_layer"],
)
def test_heads_must_divide_the_width(kind: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**kind)


def test_an_option_has_one_meaning() -> None:
    """Options are taken as fields of the configuration, so none may have the name of another field."""
    own = {one.name for one in fields(CoRAConfig)}
    for name in GENERATORS:
        options = {one.name: one.default for one in fields(generator_class(name).Options)}
        assert not own & options.keys(), name
        assert options.get("generator_dropout", 0.1) == 0.1, name
