"""What each position of the ICT sees, and its loss."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cora.methods.llmcf.ict import ICT

_K, _ROWS, _FIELDS, _TEXT = 4, 6, 10, 12


@pytest.fixture
def model() -> ICT:
    torch.manual_seed(0)
    return ICT(_FIELDS, _TEXT, width=8, hidden=16).double()


def inputs(k: int = _K) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "row": torch.randn(_ROWS, _FIELDS, generator=generator).double(),
        "examples": torch.randn(_ROWS, _K, _FIELDS, generator=generator).double()[:, :k],
        "texts": torch.randn(_ROWS, _K, _TEXT, generator=generator).double()[:, :k],
        "labels": torch.randint(0, 2, (_ROWS, _K), generator=generator)[:, :k],
        "there": torch.ones(_ROWS, k, dtype=torch.bool),
    }


def changed(told: dict[str, Tensor], name: str, place: int) -> dict[str, Tensor]:
    other = told[name].clone()
    other[:, place] = 1 - other[:, place] if name == "labels" else other[:, place] + 1
    return told | {name: other}


@pytest.mark.parametrize("place", range(_K))
@pytest.mark.parametrize(("name", "within"), [("examples", 0), ("texts", 1), ("labels", 2)])
def test_it_is_causal(model: ICT, name: str, within: int, place: int) -> None:
    """A position sees what is before it and itself: x_j neither its text nor its label, nor later examples."""
    told = inputs()
    before, after = model(**told), model(**changed(told, name, place))
    first = 3 * place + within
    assert torch.equal(before[:, :first], after[:, :first])
    assert ((before[:, first:] - after[:, first:]).abs().amax(2) > 1e-9).all()


@pytest.mark.parametrize("texts", [True, False])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_what_is_not_there_is_not_there(k: int, texts: bool) -> None:
    """With the last k alone the same as if there were only k."""
    torch.manual_seed(0)
    model = ICT(_FIELDS, _TEXT if texts else None, width=8, hidden=16).double()
    told = inputs()
    there = torch.arange(_K) >= _K - k
    masked = model(**told | {"there": there.expand(_ROWS, -1)})
    few = {name: one if name == "row" else one[:, _K - k :] for name, one in told.items()}
    torch.testing.assert_close(masked[:, model.step * (_K - k) :], model(**few), rtol=1e-12, atol=1e-12)


def test_without_texts_there_is_no_such_position() -> None:
    model = ICT(_FIELDS, None, width=8, hidden=16).double()
    assert model(**inputs()).shape == (_ROWS, 2 * _K + 1, 8)
    assert not torch.equal(model(**inputs()), model(**changed(inputs(), "labels", 3)))


class Perfect(torch.nn.Module):
    def __init__(self, texts: Tensor) -> None:
        super().__init__()
        self.texts = texts

    def forward(self, _: Tensor) -> Tensor:
        return self.texts


def test_the_loss_of_texts(model: ICT) -> None:
    told = inputs()
    told["there"][0, :2] = told["there"][1] = False
    h = model(**told).detach()
    loss = model.text_loss(h, told["texts"], told["there"])
    cosines = [
        torch.nn.functional.cosine_similarity(model.back(h[row, 3 * place]), told["texts"][row, place], 0).item()
        for row in range(_ROWS) for place in range(_K) if told["there"][row, place]
    ]  # fmt: skip
    assert loss.item() == pytest.approx(1 - sum(cosines) / len(cosines))
    there = told["texts"][told["there"]]
    nothing = torch.zeros_like(told["there"])
    assert model.text_loss(h, told["texts"], nothing).item() == 0
    for back, expected in ((there * 3, 0.0), (-there, 2.0)):
        model.back = Perfect(back)
        assert float(model.text_loss(h, told["texts"], told["there"])) == pytest.approx(expected, abs=1e-12)


def test_gradients(model: ICT) -> None:
    told: dict[str, Any] = inputs()
    texts = told["texts"].requires_grad_()
    h = model(**told)
    (h[:, -1].square().sum() + model.text_loss(h, texts.detach(), told["there"])).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in model.parameters())
    assert not any(one is texts for one in model.parameters())


@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_position_alone(layers: int) -> None:
    torch.manual_seed(0)
    model, told = ICT(_FIELDS, None, width=8, hidden=16, layers=layers).double(), inputs()
    parts = model.of_row(told["row"]), model.of_row(told["examples"]), None, told["labels"], told["there"]
    torch.testing.assert_close(model.read(*parts, last=True), model.read(*parts)[:, -1:])


def test_positions_are_turned_as_complex_numbers(model: ICT) -> None:
    """RoPE by its definition: pair i of each head times exp(1j · position · 10000^(-2i / width of a head))."""
    block: Any = model.blocks[0]
    normed = torch.randn(3, 7, 8, dtype=torch.float64)
    plain = torch.view_as_complex(block.qk(normed).unflatten(2, (2, 2, 2, 2)).contiguous())
    angles = torch.arange(7).double()[:, None] * 10_000.0 ** (-torch.arange(2).double() * 2 / 4)
    expected = plain * torch.polar(torch.ones_like(angles), angles)[:, None, None]
    torch.testing.assert_close(block._rotated(normed), torch.view_as_real(expected).flatten(2), atol=1e-6, rtol=1e-6)
