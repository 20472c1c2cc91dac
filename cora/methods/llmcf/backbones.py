"""Five models of click-through behind one interface, each with its own place for one more feature."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class MLP(nn.Sequential):
    """Linear, ReLU and dropout for each of the widths, then a linear layer to `out`, if there is one."""

    def __init__(self, width: int, hidden: Sequence[int], out: int | None, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = []
        for wide in hidden:
            layers += [nn.Linear(width, wide), nn.ReLU(), nn.Dropout(dropout)]
            width = wide
        super().__init__(*layers, *([] if out is None else [nn.Linear(width, out)]))


class Backbone(nn.Module):
    """logit [B] of fields [B, F, d], history [B, H, d], rated [B, H] and f [B, d_f] or None.

    fields: vectors of the row's user and item and what is known of them. history: vectors of what the user rated
    before; rated: 1 where that was liked, -1 where it was disliked, 0 where nothing is. f: one more feature, None for
    the model without. fields, width, feature: F, d and d_f, 0 for none.
    """

    def __init__(self, fields: int, width: int, feature: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()

    def forward(self, fields: Tensor, history: Tensor, rated: Tensor, f: Tensor | None = None) -> Tensor:
        raise NotImplementedError


def with_past(fields: Tensor, history: Tensor, rated: Tensor) -> Tensor:
    """[B, F + 1, d]: the fields and Σ_t rated_t · h_t / (1 + rated ones), so that a short past counts for less."""
    past = (rated[..., None] * history).sum(1) / (1 + rated.abs().sum(1, keepdim=True))
    return torch.cat([fields, past[:, None]], 1)


def _joined(fields: Tensor, f: Tensor | None) -> Tensor:
    flat = fields.flatten(1)
    return flat if f is None else torch.cat([flat, f], 1)


class DeepFM(Backbone):
    """w·[fields] + ½ Σ_j ((Σ_k v_kj)² - Σ_k v_kj²) + MLP([fields ; f]) + w_f·f, the past a field.

    Source: Guo et al., DeepFM, IJCAI 2017, arXiv 1703.04247; f as in LLM-CF: in the deep part and linear, not in FM.
    """

    def __init__(self, fields: int, width: int, feature: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__(fields, width, feature, hidden, dropout)
        wide = (fields + 1) * width
        self.linear = nn.Linear(wide, 1)
        self.of_feature = nn.Linear(feature, 1, bias=False) if feature else None
        self.deep = MLP(wide + feature, hidden, 1, dropout)

    def forward(self, fields: Tensor, history: Tensor, rated: Tensor, f: Tensor | None = None) -> Tensor:
        fields = with_past(fields, history, rated)
        pairs = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1, keepdim=True)
        logit = self.linear(fields.flatten(1)) + pairs + self.deep(_joined(fields, f))
        return (logit if self.of_feature is None else logit + self.of_feature(f)).squeeze(1)


class XDeepFM(Backbone):
    """w·[fields] + w_c·[Σ_j x¹_j ; Σ_j x²_j] + MLP([fields ; f]) + w_f·f, the past a field, and f a field of the CIN:
    x^k = ReLU(Conv(x⁰ ⊗ h^(k-1))), whose first half is read and whose second is h^k, of the last layer all is read.

    Source: Lian et al., xDeepFM, KDD 2018, arXiv 1803.05170.
    """

    def __init__(
        self, fields: int, width: int, feature: int, hidden: Sequence[int], dropout: float, maps: int = 16
    ) -> None:
        super().__init__(fields, width, feature, hidden, dropout)
        wide, inputs = (fields + 1) * width, fields + 1 + (feature > 0)
        if feature not in (0, width):
            raise ValueError(f"feature: expected as wide as the fields, {width}, got {feature}")
        self.linear = nn.Linear(wide, 1)
        self.of_feature = nn.Linear(feature, 1, bias=False) if feature else None
        self.deep = MLP(wide + feature, hidden, 1, dropout)
        self.crosses = nn.ModuleList([nn.Conv1d(inputs * inputs, maps, 1), nn.Conv1d(inputs * (maps // 2), maps, 1)])
        self.of_crosses = nn.Linear(maps // 2 + maps, 1)

    def forward(self, fields: Tensor, history: Tensor, rated: Tensor, f: Tensor | None = None) -> Tensor:
        fields = with_past(fields, history, rated)
        logit = self.linear(fields.flatten(1)) + self.deep(_joined(fields, f))
        if self.of_feature is not None:
            logit = logit + self.of_feature(f)
        x = hidden = fields if f is None else torch.cat([fields, f[:, None]], 1)
        first, last = self.crosses
        read, hidden = functional.relu(first(_products(x, hidden))).chunk(2, 1)
        crossed = torch.cat([read, functional.relu(last(_products(x, hidden)))], 1).sum(2)
        return (logit + self.of_crosses(crossed)).squeeze(1)


def _products(x: Tensor, h: Tensor) -> Tensor:
    """[B, m·n, d], every row of x [B, m, d] times every row of h [B, n, d]."""
    return (x[:, :, None] * h[:, None]).flatten(1, 2)


class DCNv2(Backbone):
    """w·[x² ; MLP(x)], x = [fields ; f] with the past a field, x^(l+1) = x^l + Σ_e softmax_e(<g_e, x^l>) · x ⊙
    (U_e tanh(C_e tanh(V_eᵀ x^l)) + b): two layers of four experts of rank 4.

    Source: Wang et al., DCN V2, WWW 2021, arXiv 2008.13535, the parallel form.
    """

    def __init__(
        self, fields: int, width: int, feature: int, hidden: Sequence[int], dropout: float, rank: int = 4
    ) -> None:
        super().__init__(fields, width, feature, hidden, dropout)
        wide, layers, experts = (fields + 1) * width + feature, 2, 4
        self.u, self.v = (
            nn.ParameterList(nn.init.xavier_normal_(torch.empty(experts, wide, rank)) for _ in range(layers))
            for _ in range(2)
        )
        self.c = nn.ParameterList(nn.init.xavier_normal_(torch.empty(experts, rank, rank)) for _ in range(layers))
        self.bias = nn.ParameterList(torch.zeros(wide) for _ in range(layers))
        self.gate = nn.Linear(wide, experts, bias=False)
        self.deep = MLP(wide, hidden, None, dropout)
        self.out = nn.Linear(wide + hidden[-1], 1)

    def forward(self, fields: Tensor, history: Tensor, rated: Tensor, f: Tensor | None = None) -> Tensor:
        x = crossed = _joined(with_past(fields, history, rated), f)
        for u, v, c, bias in zip(self.u, self.v, self.c, self.bias, strict=True):
            low = torch.tanh(torch.einsum("bi,eir->ber", crossed, v))
            low = torch.tanh(torch.einsum("ber,esr->bes", low, c)) * self.gate(crossed).softmax(1)[..., None]
            crossed = crossed + x * (torch.einsum("bes,eis->bi", low, u) + bias)
        return self.out(torch.cat([crossed, self.deep(x)], 1)).squeeze(1)


class AutoInt(Backbone):
    """w·[fields] + w_a·[z] + MLP([fields ; f]), z the fields and f after one layer of attention between fields, of two
    heads: ReLU(softmax(Q Kᵀ / √d) V + W x), the past a field. f reads the fields and is not read by them: without
    weights of its own it changes nothing.

    Source: Song et al., AutoInt, CIKM 2019, arXiv 1810.11921.
    """

    def __init__(
        self, fields: int, width: int, feature: int, hidden: Sequence[int], dropout: float, heads: int = 2
    ) -> None:
        super().__init__(fields, width, feature, hidden, dropout)
        if feature not in (0, width):
            raise ValueError(f"feature: expected as wide as the fields, {width}, got {feature}")
        self.heads, wide = heads, (fields + 1) * width
        self.q, self.k, self.v, self.residual = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.linear = nn.Linear(wide, 1)
        self.of_attention = nn.Linear(wide + feature, 1)
        self.deep = MLP(wide + feature, hidden, 1, dropout)

    def forward(self, fields: Tensor, history: Tensor, rated: Tensor, f: Tensor | None = None) -> Tensor:
        fields = with_past(fields, history, rated)
        tokens = fields if f is None else torch.cat([fields, f[:, None]], 1)
        q, k, v = (
            layer(one).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, one in ((self.q, tokens), (self.k, fields), (self.v, fields))
        )
        read = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        attended = functional.relu(read + self.residual(tokens))
        logit = self.linear(fields.flatten(1)) + self.of_attention(attended.flatten(1))
        return (logit + self.deep(_joined(fields, f))).squeeze(1)


class DIN(Backbone):
    """MLP([Σ_t a_t·h_t ; fields ; f]), a_t = MLP([v ; h_t ; v - h_t ; v·h_t]), v the sum of the fields of the item,
    all but the first, which is the user's. As published the a_t are no softmax: how much of a past speaks to the item
    counts; and the activations are PReLU.

    Source: Zhou et al., Deep interest network for click-through rate prediction, KDD 2018, arXiv 1706.06978.
    """

    def __init__(self, fields: int, width: int, feature: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__(fields, width, feature, hidden, dropout)
        self.attention = MLP(4 * width, (32,), 1)
        self.deep = MLP((fields + 1) * width + feature, hidden, 1, dropout)
        for layers in (self.attention, self.deep):
            for place, layer in enumerate(layers):
                if isinstance(layer, nn.ReLU):
                    layers[place] = nn.PReLU()

    def forward(self, fields: Tensor, history: Tensor, rated: Tensor, f: Tensor | None = None) -> Tensor:
        weights = self._attention(fields[:, 1:].sum(1), history)
        read = (weights * rated.abs()[..., None] * history).sum(1)
        logit: Tensor = self.deep(_joined(torch.cat([read[:, None], fields], 1), f))
        return logit.squeeze(1)

    def _attention(self, item: Tensor, history: Tensor) -> Tensor:
        """a [B, H, 1] of the items v [B, d] and the pasts h [B, H, d].

        The first layer is W_v v + W_h h + W_- (v - h) + W_· (v·h) = (W_v + W_-) v + [W_h - W_- ; W_·] [h ; v·h]: what
        is of the item alone is computed once for its whole past, and half as wide a product is left for the rest.
        """
        first, *rest = self.attention
        assert isinstance(first, nn.Linear)
        of_item, of_past, of_difference, of_product = first.weight.chunk(4, 1)
        base = functional.linear(item, of_item + of_difference, first.bias)
        read = torch.cat([history, item[:, None] * history], -1)
        hidden = functional.linear(read, torch.cat([of_past - of_difference, of_product], 1)) + base[:, None]
        for layer in rest:
            hidden = layer(hidden)
        return hidden


BACKBONES: dict[str, type[Backbone]] = {
    "deepfm": DeepFM, "xdeepfm": XDeepFM, "dcnv2": DCNv2, "autoint": AutoInt, "din": DIN,
}  # fmt: skip
