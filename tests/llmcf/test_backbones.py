"""The backbones against torch-rechub's on copied weights, and what one more feature does to them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cora.methods.llmcf.backbones import BACKBONES, DIN, MLP, AutoInt, Backbone, DCNv2, DeepFM, XDeepFM, with_past

_FIELDS, _WIDTH, _PAST, _ROWS = 4, 6, 5, 7
_HIDDEN = (12, 8)


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    fields = torch.randn(_ROWS, _FIELDS, _WIDTH, generator=generator)
    history = torch.randn(_ROWS, _PAST, _WIDTH, generator=generator)
    return fields, history, torch.randint(-1, 2, (_ROWS, _PAST), generator=generator).float()


def made(name: str, feature: int = 0, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return BACKBONES[name](_FIELDS, _WIDTH, feature, _HIDDEN, 0.1).eval()


def rechub() -> tuple:
    layers = pytest.importorskip("torch_rechub.basic.layers", reason="torch-rechub, the oracle, is not installed")
    features = pytest.importorskip("torch_rechub.basic.features")
    models = pytest.importorskip("torch_rechub.models.ranking")
    return layers, features, models


def given(model: nn.Module, values: Tensor) -> None:
    """The model reads these fields in place of its tables'."""
    tables = next(name for name, one in model.named_children() if type(one).__name__ == "EmbeddingLayer")

    class Given(nn.Module):
        def forward(self, _: object, features: list, squeeze_dim: bool = False) -> Tensor:
            return values.flatten(1) if squeeze_dim else values

    setattr(model, tables, Given())


def copied(ours: MLP, theirs: nn.Module, activation: Callable[[], nn.Module] | None = None) -> None:
    """Weights of linears into theirs, whose batch norms change nothing in eval mode with a variance of 1 - eps."""
    linears = [one for one in theirs.mlp if isinstance(one, nn.Linear)]
    for mine, other in zip([one for one in ours if isinstance(one, nn.Linear)], linears, strict=True):
        other.load_state_dict(mine.state_dict())
    for place, one in enumerate(theirs.mlp):
        if isinstance(one, nn.BatchNorm1d):
            one.running_var.fill_(1 - one.eps)
        if activation is not None and type(one).__name__ == "Dice":
            theirs.mlp[place] = activation()


def sparse(features: object, count: int) -> list:
    return [features.SparseFeature(f"c{place}", 3, _WIDTH) for place in range(count)]


def test_deepfm() -> None:
    _, features, models = rechub()
    fields, history, rated = inputs()
    ours = made("deepfm")
    assert isinstance(ours, DeepFM)
    columns = sparse(features, _FIELDS + 1)
    theirs = models.DeepFM(columns, columns, {"dims": list(_HIDDEN)}).eval()
    given(theirs, with_past(fields, history, rated))
    theirs.linear.fc.load_state_dict(ours.linear.state_dict())
    copied(ours.deep, theirs.mlp)
    torch.testing.assert_close(ours(fields, history, rated).sigmoid(), theirs({}))


def test_xdeepfm() -> None:
    layers, _, _ = rechub()
    fields, history, rated = inputs()
    ours = made("xdeepfm")
    assert isinstance(ours, XDeepFM)
    values = with_past(fields, history, rated)
    cin = layers.CIN(_FIELDS + 1, [16, 16]).eval()
    cin.conv_layers.load_state_dict(ours.crosses.state_dict())
    cin.fc.load_state_dict(ours.of_crosses.state_dict())
    deep = layers.MLP(values[0].numel(), dims=list(_HIDDEN)).eval()
    copied(ours.deep, deep)
    expected = ours.linear(values.flatten(1)) + cin(values) + deep(values.flatten(1))
    torch.testing.assert_close(ours(fields, history, rated), expected.squeeze(1))


def test_dcnv2() -> None:
    _, features, models = rechub()
    fields, history, rated = inputs()
    ours = made("dcnv2")
    assert isinstance(ours, DCNv2)
    mlp = {"dims": list(_HIDDEN)}
    theirs = models.DCNv2(sparse(features, _FIELDS + 1), 2, mlp, low_rank=4, num_experts=4).eval()
    given(theirs, with_past(fields, history, rated))
    with torch.no_grad():
        for name in ("u", "v", "c"):
            for mine, other in zip(getattr(ours, name), getattr(theirs.crossnet, f"{name}_list"), strict=True):
                other.copy_(mine)
        for mine, other in zip(ours.bias, theirs.crossnet.bias, strict=True):
            mine.copy_(torch.randn(len(mine)))
            other.copy_(mine[:, None])
        for row, other in zip(ours.gate.weight, theirs.crossnet.gating, strict=True):
            other.weight.copy_(row[None])
    theirs.linear.fc.load_state_dict(ours.out.state_dict())
    copied(ours.deep, theirs.parallel_dnn)
    torch.testing.assert_close(ours(fields, history, rated).sigmoid(), theirs({}))


def test_autoint() -> None:
    _, features, models = rechub()
    fields, history, rated = inputs()
    ours = made("autoint")
    assert isinstance(ours, AutoInt)
    theirs = models.AutoInt(sparse(features, _FIELDS + 1), [], 1, 2, mlp_params={"dims": list(_HIDDEN)}).eval()
    given(theirs, with_past(fields, history, rated))
    (layer,) = theirs.interacting_layers
    for mine, other in ((ours.q, layer.W_Q), (ours.k, layer.W_K), (ours.v, layer.W_V), (ours.residual, layer.W_Res)):
        other.load_state_dict(mine.state_dict())
    theirs.linear.fc.load_state_dict(ours.linear.state_dict())
    theirs.attn_linear.load_state_dict(ours.of_attention.state_dict())
    copied(ours.deep, theirs.mlp)
    torch.testing.assert_close(ours(fields, history, rated).sigmoid(), theirs({}))


def test_din() -> None:
    """Theirs has one field of the item and reads every place of a past."""
    layers, _, models = rechub()
    din = pytest.importorskip("torch_rechub.models.ranking.din")
    fields, history, _ = inputs()
    torch.manual_seed(0)
    ours = DIN(2, _WIDTH, 0, _HIDDEN, 0.1).eval()
    unit = din.ActivationUnit(_WIDTH, dims=[32]).eval()
    copied(ours.attention, unit.attention, nn.PReLU)
    deep = layers.MLP(3 * _WIDTH, dims=list(_HIDDEN), activation="dice").eval()
    copied(ours.deep, deep, nn.PReLU)
    user, item = fields[:, 0], fields[:, 1]
    expected = deep(torch.cat([unit(history, item), user, item], 1)).squeeze(1)
    torch.testing.assert_close(ours(fields[:, :2], history, -torch.ones(_ROWS, _PAST)), expected)


def widened(name: str) -> tuple[Backbone, Backbone]:
    """A backbone, and one with a feature that has no weight anywhere and the same weights else."""
    plain, other = made(name), made(name, _WIDTH, seed=1)
    wide = (_FIELDS + 1) * _WIDTH
    weights = plain.state_dict()
    for key, value in other.state_dict().items():
        value.zero_()
        if key not in weights:
            continue
        mine = weights[key]
        if key == "crosses.0.weight":  # the pairs of fields are a square within a larger one
            square = value.view(len(value), _FIELDS + 2, _FIELDS + 2)
            square[:, :-1, :-1] = mine.view(len(mine), _FIELDS + 1, _FIELDS + 1)
        elif key == "crosses.1.weight":
            value.view(len(value), _FIELDS + 2, -1)[:, :-1] = mine.view(len(mine), _FIELDS + 1, -1)
        elif key == "out.weight":  # of [x ; MLP]
            value[:, :wide], value[:, wide + _WIDTH :] = mine[:, :wide], mine[:, wide:]
        else:
            value[tuple(slice(0, size) for size in mine.shape)] = mine
    return plain, other


@pytest.mark.parametrize("name", BACKBONES)
def test_a_feature_without_weights_changes_nothing(name: str) -> None:
    plain, other = widened(name)
    f = torch.randn(_ROWS, _WIDTH)
    torch.testing.assert_close(other(*inputs(), f), plain(*inputs()))
    assert not torch.allclose(made(name, _WIDTH)(*inputs(), f), made(name, _WIDTH)(*inputs(), 2 * f))


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_and_what_is_not_there(name: str) -> None:
    fields, history, rated = (one.requires_grad_() for one in inputs())
    model = made(name, _WIDTH)
    f = torch.randn(_ROWS, _WIDTH, requires_grad=True)
    model(fields, history, rated, f).square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in (fields, history, f, *model.parameters()))
    absent = rated == 0
    assert (history.grad[absent] == 0).all() and (history.grad[~absent] != 0).any(1).all()


@pytest.mark.parametrize("name", ["xdeepfm", "autoint"])
def test_a_feature_that_is_a_field_is_as_wide(name: str) -> None:
    with pytest.raises(ValueError, match=f"feature: expected as wide as the fields, {_WIDTH}, got 5"):
        made(name, 5)
