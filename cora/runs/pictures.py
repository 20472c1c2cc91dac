"""The picture of a training run."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cora.files import write_files
from cora.runs.metrics import label_of

_TRAIN, _METHOD, _OTHERS = "#7f8c9a", "#0b6fb8", "#c4621a"


def training_picture(
    history: list[dict[str, Any]], method: str, start: str, others: dict[str, float], path: Path
) -> None:
    """Loss and validation AUC of the method against steps, as a PNG. history: the Trainer's log; start: what it is
    before the first; others: AUC of what needs no language model on the same rows, by name."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, aucs = figure.subplots(1, 2)
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    valid = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    auc = [(entry["step"], entry["eval_auc"]) for entry in history if "eval_auc" in entry]
    losses.plot(*zip(*train, strict=True), color=_TRAIN, linewidth=1, label="training")
    losses.plot(*zip(*valid, strict=True), color=_METHOD, marker="o", markersize=3, label="validation")
    losses.set(xlabel="step", ylabel="binary cross-entropy", title="Loss")
    aucs.plot(
        *zip(*auc, strict=True),
        color=_METHOD,
        marker="o",
        markersize=3,
        label=f"{label_of(method)} (step 0: {start})",
    )
    for style, (name, value) in zip(("--", ":"), others.items(), strict=False):
        aucs.axhline(value, color=_OTHERS, linestyle=style, label=label_of(name))
    aucs.set(xlabel="step", ylabel="AUC", title="Validation AUC")
    for axes in (losses, aucs):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    write_files(path.parent, {path.name: lambda file: figure.savefig(file, dpi=150, format="png")})


def ranking_picture(history: list[dict[str, Any]], measure: str, path: Path) -> None:
    """Loss and validation measure against steps, as a PNG. history: the Trainer's log."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, ranks = figure.subplots(1, 2)
    train = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    valid = [(entry["step"], entry[f"eval_{measure}"]) for entry in history if f"eval_{measure}" in entry]
    losses.plot(*zip(*train, strict=True), color=_TRAIN, linewidth=1)
    losses.set(xlabel="step", ylabel="cross-entropy", title="Loss")
    ranks.plot(*zip(*valid, strict=True), color=_METHOD, marker="o", markersize=3)
    ranks.set(xlabel="step", ylabel=measure.upper(), title="Validation, seen items removed")
    for axes in (losses, ranks):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    write_files(path.parent, {path.name: lambda file: figure.savefig(file, dpi=150, format="png")})
