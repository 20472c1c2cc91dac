"""Why a run scores an item for a user as it does: what the delta changes, in which layers, and who is alike."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from cora.data.problems import clipped
from cora.files import write_files
from cora.llm.deltas import Delta
from cora.methods.model import MethodModel
from cora.methods.samples import Samples
from cora.prompts import PromptCollator
from cora.runs.folder import RunFolder
from cora.runs.prepare import Prepared, prepare
from cora.runs.recommend import as_id
from cora.runs.score import load_model
from cora.runs.similarity import directions_of

_USERS_AT_ONCE = 64
_ADDS, _TAKES = "#0b6fb8", "#c4621a"


@dataclass(frozen=True)
class Explanation:
    """score_on, score_off: the score with the pair's delta and without it. layers: layer, added, the most telling is
    the largest; neighbours: user_id, similarity, the most alike first, empty where all users share their deltas."""

    title: str
    history: list[str]
    score_on: float
    score_off: float
    layers: pd.DataFrame
    neighbours: pd.DataFrame


def explain(run: str | Path, user: str, item: str, neighbours: int = 10) -> Explanation:
    """What the delta of a user and an item does to the item's score, as of the end of the run's data.

    layers, added: ∂score/∂t_l at t = 1, where t_l scales the delta of layer l, all from one forward and backward: how
    much the score would fall, to first order, for each share of that layer's delta that is taken away. Their sum is the
    whole difference only where the score is linear in the deltas.
    neighbours: the other users of the data by the cosine of their A for the same item with this user's, over all
    matrices that the method makes for each sample.
    user, item: ids as text.

    Raises FileNotFoundError unless a finished run is there; ValueError for ids that the data cannot have, an item
    without a title, and neighbours < 0.
    """
    folder = RunFolder.existing(run)
    if neighbours < 0:
        raise ValueError(f"neighbours: expected a whole number from 0, got {neighbours}")
    prepared = prepare(folder.config())
    frame, titles = prepared.data.frame, prepared.data.titles
    who, what = as_id("user", user, frame["user_id"]), as_id("item", item, frame["item_id"])
    if what not in titles:
        raise ValueError(f"item: {item!r} has no title in {prepared.data.name}")
    model = load_model(folder, folder.config())
    row = pd.DataFrame({"user_id": [who], "item_id": [what], "timestamp": [np.iinfo(np.int64).max], "label": [0]})
    embeddings = folder.vectors()
    row = prepared.with_histories(row, directions_of(folder, embeddings))
    (history,) = row["history"]
    vectors = prepared.user_vectors(embeddings, row)
    prompt = PromptCollator(prepared.tokenizer)([prepared.prompts(row, vectors)[0]])
    samples = Samples([who], [what], vectors)
    on, off, layers = _layers(
        model, prompt["input_ids"], prompt["attention_mask"], samples, prompt.get("prefix_lengths")
    )
    others = _neighbours(model, prepared, folder, samples, neighbours)
    return Explanation(titles[what], [titles[one] for one in history], on, off, layers, others)


def picture(found: Explanation, user: str, path: Path) -> None:
    """What each layer's delta adds, and the users whose deltas are most alike, as a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    added = found.layers["added"].to_numpy()
    left.bar(found.layers["layer"].astype(str), added, color=np.where(added >= 0, _ADDS, _TAKES))
    left.set(xlabel="layer", ylabel="added to the score", title=f"{found.score_off:+.2f} to {found.score_on:+.2f}")
    left.tick_params(axis="x", labelsize=7)
    names = [_as_drawn(one) for one in found.neighbours["user_id"][::-1]]
    right.barh(names, found.neighbours["similarity"][::-1], color=_ADDS)
    right.set(xlabel="cosine of A", title=f"Users whose A is most like that of user {_as_drawn(user)}")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    write_files(path.parent, {path.name: lambda file: figure.savefig(file, dpi=150, format="png")})


def _as_drawn(user: Any) -> str:
    """An id in a picture: short, and with no dollar that would begin a formula."""
    return clipped(str(user), 40).replace("$", r"\$")


def _layers(
    model: MethodModel, input_ids: Tensor, attention_mask: Tensor, samples: Samples, prefix_lengths: Tensor | None
) -> tuple[float, float, pd.DataFrame]:
    device = model.base.device
    prompts = model.prompts(input_ids.to(device), attention_mask.to(device), samples, prefix_lengths)
    with torch.no_grad():
        tokens = model.embedded(prompts.input_ids, samples)
        off = model.with_offsets(model.scorer.answer(prompts, None, model.readouts(samples), tokens), samples)
        parts = samples.of(prompts)
        deltas = model.deltas(parts)
    shares = {layer: torch.ones(1, device=device, requires_grad=True) for layer in map(_layer_of, deltas)}
    scaled = {
        name: one._replace(scaling=(one.scaling * shares[_layer_of(name)]).expand(len(parts.user_ids)))
        for name, one in deltas.items()
    }
    on = model.with_offsets(model.scorer.answer(prompts, scaled, model.readouts(samples), tokens), samples)
    gradients = torch.autograd.grad(on.sum(), list(shares.values()))
    table = pd.DataFrame({"layer": list(shares), "added": [float(one) for one in gradients]})
    return float(on.detach()), float(off), table


def _layer_of(name: str) -> int:
    """The number of the layer of a linear, -1 of one in none."""
    found = re.search(r"\.(\d+)\.", f".{name}.")
    return int(found.group(1)) if found else -1


@torch.no_grad()
def _neighbours(
    model: MethodModel, prepared: Prepared, folder: RunFolder, samples: Samples, count: int
) -> pd.DataFrame:
    """The users of the data most like the one user of the samples by their A for the one item."""
    own = _as(model.deltas(samples))
    who: Any = samples.user_ids[0]
    what: Any = samples.item_ids[0]
    others = [one for one in pd.unique(prepared.data.frame["user_id"]).tolist() if one != who]
    if count == 0 or not own or not others:
        return pd.DataFrame({"user_id": [], "similarity": []})
    rows = pd.DataFrame({"user_id": others, "item_id": what, "timestamp": np.iinfo(np.int64).max})
    vectors = prepared.user_vectors(folder.vectors(), rows)
    found = []
    with tqdm(total=len(others), desc="neighbours", unit="user", delay=2) as bar:
        for start in range(0, len(others), _USERS_AT_ONCE):
            users = others[start : start + _USERS_AT_ONCE]
            some = None if vectors is None else vectors[start : start + len(users)]
            made = _as(model.deltas(Samples(users, [what] * len(users), some)))
            dots = sum((a.flatten(1) @ b.flatten(1).T)[:, 0] for a, b in zip(made, own, strict=True))
            found.append(dots / (_norms(made) * _norms(own)).clamp(min=1e-12))
            bar.update(len(users))
    similarity = torch.cat(found).double().cpu().numpy()
    best = np.argsort(-similarity, kind="stable")[:count]
    return pd.DataFrame({"user_id": [others[one] for one in best], "similarity": similarity[best]})


def _as(deltas: Mapping[str, Delta]) -> list[Tensor]:
    """Every lora_a [B, K, r] that is made for each sample, one that several linears share once."""
    return list({id(one.lora_a): one.lora_a for one in deltas.values() if one.lora_a.dim() == 3}.values())


def _norms(matrices: list[Tensor]) -> Tensor:
    return sum((one.flatten(1).square().sum(1) for one in matrices), torch.zeros(())).sqrt()


def as_text(found: Explanation, user: str) -> str:
    """An explanation as lines."""
    lines = [
        f"{found.title}, for user {user}",
        f"  score with the delta {found.score_on:+.3f}, without it {found.score_off:+.3f}",
        "  what each layer's delta adds, to first order, the largest first",
    ]
    largest = found.layers.reindex(found.layers["added"].abs().sort_values(ascending=False, kind="stable").index)
    lines += [f"    layer {one.layer:>3}  {one.added:+.4f}" for one in largest.head(8).itertuples()]
    lines.append(f"    all        {found.layers['added'].sum():+.4f}")
    if len(found.neighbours):
        lines.append("  users whose A for this item is most alike, by its cosine")
        lines += [f"    {one.similarity:.4f}  user {one.user_id}" for one in found.neighbours.itertuples()]
    return "\n".join(lines)


def save(found: Explanation, run: str | Path, user: str, item: str) -> Path:
    """Writes the picture into the run's folder; returns its path."""
    named: dict[str, Any] = {"user": user, "item": item}
    names = "-".join(f"{name}-{re.sub(r'[^A-Za-z0-9_.]', '_', value)[:80]}" for name, value in named.items())
    path = RunFolder(run).path / f"explain-{names}.png"
    picture(found, user, path)
    return path
