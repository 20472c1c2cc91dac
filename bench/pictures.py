"""The pictures of a run. An opaque light card: readable on light and dark pages alike."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from bench.contestants import CONTESTANTS
from bench.table import Row, linears
from cora_kernels import explain
from cora_kernels.planning.gpus import GPUS

_CARD, _INK = "#f6f7f8", "#20262c"
_PEERS = ["#8a6d3b", "#b5651d", "#7a8b99", "#a05fa0", "#c2a21a", "#d1495b", "#5f7f5f", "#3f6f9f", "#9c7c6c", "#4f9f9f"]
_MARKS = ["s", "^", "v", "D", "P", "X", "<", ">", "p", "h", "d", "*"]
# Slower than this share of the floor's speed is drawn at the edge: the rest is what one wants to tell apart.
_SLOWEST = 0.1
_OURS = {"ours: cpu": "#005fcc", "ours: triton": "#005fcc", "ours: cuda": "#0a8f5b", "ours: chain": "#5aa9f0"}


def draw(run: dict[str, Any], folder: Path, name: str) -> dict[str, str]:
    """Writes the pictures as PNG; file names by caption. What was not measured has none."""
    drawn = {}
    for kind, caption, figure in (
        ("retention", "Speed kept of the frozen linear", _retention(run)),
        ("roofline", "Roofline", _roofline(run)),
        ("growth", "How the cost grows with B, T and r", _growth(run)),
        ("memory", "Memory against the batch size", _memory(run)),
    ):
        if figure is not None:
            file = f"{name}-{kind}.png"
            figure.savefig(folder / file, dpi=110, facecolor=_CARD)
            drawn[caption] = file
    return drawn


def style(name: str) -> dict[str, Any]:
    """Colour and mark of a contestant, the same in every picture; ours larger and on top."""
    if name in _OURS:
        return {"color": _OURS[name], "marker": "o", "markersize": 8, "zorder": 5, "linewidth": 2.2}
    i = [c.name for c in CONTESTANTS].index(name)
    return {"color": _PEERS[i % len(_PEERS)], "marker": _MARKS[i % len(_MARKS)], "markersize": 5, "linewidth": 1}


def _retention(run: dict[str, Any]) -> Figure | None:
    """floor / time of every contestant in every case, those of ours by `explain` where it knows the GPU."""
    kinds = {kind: [row for row in linears(run) if row.info["kind"] == kind] for kind in ("forward", "train")}
    kinds = {kind: [row for row in chosen if row.floor] for kind, chosen in kinds.items()}
    kinds = {kind: chosen for kind, chosen in kinds.items() if chosen}
    if not kinds:
        return None
    heights = [len(chosen) for chosen in kinds.values()]
    figure = Figure(figsize=(12, 2.6 + 0.3 * sum(heights)), layout="constrained")
    axes_of = figure.subplots(len(kinds), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (kind, chosen) in zip(axes_of, kinds.items(), strict=True):
        for name in _names(chosen):
            points = [(row.ratio(name), i) for i, row in enumerate(chosen)]
            known = [(max(1 / ratio, _SLOWEST), i) for ratio, i in points if ratio is not None]
            axes.plot(*zip(*known, strict=True), linestyle="", label=name, alpha=0.9, clip_on=False, **_marks(name))
        predicted = [(value, i) for i, row in enumerate(chosen) if (value := _predicted(run, row)) is not None]
        if predicted:
            axes.plot(*zip(*predicted, strict=True), "|", color=_INK, markersize=12, label="ours, predicted")
        axes.axvline(1.0, color=_INK, linewidth=1)
        axes.set(xscale="log", xlim=(_SLOWEST, None), ylim=(len(chosen) - 0.4, -0.6))
        axes.set_yticks(range(len(chosen)), [_label(row) for row in chosen], fontsize=8)
        axes.set_title({"forward": "Forward", "train": "Forward + backward"}[kind], loc="left", color=_INK)
        _finish(axes)
    ticks = [tick for tick in (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5) if tick <= axes_of[-1].get_xlim()[1]]
    axes_of[-1].set_xticks([_SLOWEST, *ticks], [f"≤ {_SLOWEST}", *map(str, ticks)])
    axes_of[-1].minorticks_off()
    axes_of[-1].set_xlabel("speed against the frozen linear alone (1: the delta is free)")
    _legend(figure, axes_of)
    return figure


def _roofline(run: dict[str, Any]) -> Figure | None:
    """FLOP/s of the definition against its FLOP per byte, under what this machine reaches in a GEMM and a copy."""
    found = linears(run)
    dtypes = [dtype for dtype in ("fp32", "bf16") if any(row.info["dtype"] == dtype for row in found)]
    if not dtypes:
        return None
    peaks = run["machine_info"]["cora"]["peaks"]
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    axes_of = figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0]
    for axes, dtype in zip(axes_of, dtypes, strict=True):
        chosen = [row for row in found if row.info["dtype"] == dtype and row.medians]
        ends = [0.8 * min(_intensity(row) for row in chosen), 1.3 * max(_intensity(row) for row in chosen)]
        xs = [ends[0] * (ends[1] / ends[0]) ** (i / 99) for i in range(100)]
        roof = [min(peaks[dtype], peaks["bytes"] * x) / 1e9 for x in xs]
        axes.plot(xs, roof, color=_INK, linewidth=1.5, label="torch's GEMM and copy on this machine")
        for name in _names(chosen):
            points = [
                (_intensity(row), row.info["flops"] / row.medians[name] / 1e9) for row in chosen if name in row.medians
            ]
            axes.plot(*zip(*points, strict=True), linestyle="", alpha=0.8, label=name, **_marks(name))
        axes.set(xscale="log", yscale="log", xlabel="FLOP per byte, each operand once")
        axes.set_title(dtype, loc="left", color=_INK)
        _finish(axes)
    axes_of[0].set_ylabel("GFLOP/s of the definition")
    _legend(figure, axes_of)
    return figure


def _growth(run: dict[str, Any]) -> Figure | None:
    found = {
        key: sorted((r for r in linears(run) if key in r.info["sets"]), key=lambda r: int(r.info["sizes"][key]))
        for key in ("B", "T", "r")
    }
    found = {key: chosen for key, chosen in found.items() if len(chosen) > 1}
    if not found:
        return None
    figure = Figure(figsize=(14, 6), layout="constrained")
    axes_of = figure.subplots(1, len(found), squeeze=False)[0]
    words = {"B": "samples B", "T": "tokens T a sample", "r": "rank r"}
    for axes, (key, chosen) in zip(axes_of, found.items(), strict=True):
        for name in _names(chosen, floor=True):
            points = [(row.info["sizes"][key], 1e3 * row.medians[name]) for row in chosen if name in row.medians]
            axes.plot(*zip(*points, strict=True), label=name, **style(name))
        ticks = [row.info["sizes"][key] for row in chosen]
        axes.set(xscale="log", yscale="log", xlabel=words[key])
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        sizes = chosen[0].info["sizes"]
        rest = ", ".join(f"{other} {sizes[other]}" for other in ("B", "T", "r") if other != key)
        axes.set_title(f"{chosen[0].info['shape'].split(' B')[0]}, {rest}", loc="left", fontsize=10, color=_INK)
        _finish(axes)
        _number(axes)
    axes_of[0].set_ylabel("ms, forward + backward")
    _legend(figure, axes_of)
    return figure


def _memory(run: dict[str, Any]) -> Figure | None:
    entries = [entry for entry in run["memory"] if "bytes" in entry]
    if not entries:
        return None
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(entry["contestant"] for entry in entries):
        points = sorted((e["B"], e["bytes"] / 2**20) for e in entries if e["contestant"] == name)
        axes.plot(*zip(*points, strict=True), label=name, **style(name))
    ticks = sorted({entry["B"] for entry in entries})
    axes.set(xscale="log", yscale="log", xlabel="samples B", ylabel="MiB at the peak, beyond the inputs")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_title(entries[0]["shape"], loc="left", fontsize=10, color=_INK)
    _finish(axes)
    _number(axes)
    _legend(figure, [axes])
    return figure


def _predicted(run: dict[str, Any], row: Row) -> float | None:
    """floor / time of ours by `explain`, for one padded linear on a GPU that it knows."""
    gpu = next((known for known in GPUS if known in run["machine_info"]["cora"]["gpu"]), None)
    sizes, outputs = row.info["sizes"], row.info["outputs"]
    if gpu is None or not row.info["padded"] or len(outputs) > 1:
        return None
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[row.info["dtype"]]
    shape = sizes["B"], sizes["T"], sizes["K"], outputs[0], sizes["r"]
    steps = explain(shape, gpu, dtype=dtype, sample_b=row.info["sample_b"]).steps
    used = [step for step in steps if row.info["kind"] == "train" or step.product == "y"]
    return sum(step.floor for step in used) / sum(step.seconds for step in used)


def _names(chosen: list[Row], floor: bool = False) -> list[str]:
    there = {name for row in chosen for name in row.medians}
    return [c.name for c in CONTESTANTS if c.name in there and (floor or not c.floor)]


def _marks(name: str) -> dict[str, Any]:
    return {key: value for key, value in style(name).items() if key != "linewidth"}


def _intensity(row: Row) -> float:
    return float(row.info["flops"] / row.info["bytes"])


def _label(row: Row) -> str:
    return str(row.info["shape"]) + ("" if row.info["mode"] == "eager" else " (graph)")


def _finish(axes: Axes) -> None:
    axes.set_facecolor(_CARD)
    axes.grid(alpha=0.35)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)


def _number(axes: Axes) -> None:
    """Plain numbers up a logarithmic axis, at least two of them however short it is."""
    axes.minorticks_off()
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high / low < 300 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend(figure: Figure, axes_of: Any) -> None:
    """One legend below all axes."""
    found: dict[str, Any] = {}
    for axes in axes_of:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
