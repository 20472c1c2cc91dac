"""What the gate of a method makes of the rows of a run: whether it has collapsed, and which user has what of whom."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from cora.files import write_files
from cora.methods.model import MethodModel
from cora.methods.samples import Samples
from cora.prompts import PromptDataset

_DRAWN = 4  # linears in a picture
_COLLAPSED = 0.98


def samples_of(prompts: PromptDataset) -> Samples:
    """Whom the prompts are about."""
    return Samples(prompts.user_ids, prompts.item_ids, prompts.user_vectors)


def collapse(watched: dict[str, float]) -> str | None:
    """What to say of a gate whose weights, or of LoRAs whose directions, are nearly one and the same for all pairs."""
    found = [f"{name} is {value:.3f}" for name, value in watched.items() if value > _COLLAPSED]
    return f"{' and '.join(found)}, and 1 at most: what the gate mixes is nearly one LoRA for all" if found else None


def weights_of_users(model: MethodModel, samples: Samples) -> dict[str, pd.DataFrame]:
    """{linear name: users × learned LoRAs}: the mean weights over the samples of each user, of the linears whose gates
    tell users apart most; none of a method without a gate."""
    users = samples.user_ids.tolist() if isinstance(samples.user_ids, Tensor) else list(samples.user_ids)
    found = {
        name: pd.DataFrame(alpha.cpu().numpy()).groupby(users).mean()
        for name, alpha in model.gate_weights(samples).items()
    }
    apart = sorted(found, key=lambda name: -found[name].var(ddof=0).sum())
    return {name: found[name] for name in apart[:_DRAWN]}


def gates_picture(weights: dict[str, pd.DataFrame], path: Path) -> None:
    """Users by what they have of each learned LoRA, as a PNG: a panel for each linear, users in one order for all, by
    the LoRA that they have most of in the first."""
    figure = Figure(figsize=(3 * len(weights) + 1, 5), layout="constrained")
    panels = figure.subplots(1, len(weights), sharey=True, squeeze=False)[0]
    first = next(iter(weights.values())).to_numpy()
    order = np.lexsort((-first.max(1), first.argmax(1)))
    most = max(float(one.to_numpy().max()) for one in weights.values())
    for axes, (name, one) in zip(panels, weights.items(), strict=True):
        image = axes.imshow(one.to_numpy()[order], aspect="auto", vmin=0, vmax=most, interpolation="nearest")
        axes.set(xlabel="meta-LoRA", title=name.removeprefix("model."), xticks=range(one.shape[1]))
        axes.title.set_fontsize(8)
    panels[0].set_ylabel(f"{len(first)} users, by the meta-LoRA they have most of")
    figure.colorbar(image, ax=list(panels), label="mean weight of the gate")
    write_files(path.parent, {path.name: lambda file: figure.savefig(file, dpi=150, format="png")})
