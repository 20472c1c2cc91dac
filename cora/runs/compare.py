"""Methods compared on the same rows: a run for each and for each seed, one table with intervals of the differences."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cora.files import write_files
from cora.methods import load_method
from cora.runs.folder import RunFolder
from cora.runs.intervals import lead_text, leads
from cora.runs.metrics import BASELINES, identified, label_of, metrics
from cora.runs.settings import RunConfig, value_of
from cora.runs.train import train

# Settings of a run that a method may have of its own: what its prompts tell of a past, of the same rows.
_OF_PROMPTS = ("history", "similarity")


@dataclass(frozen=True)
class Contestant:
    """A method with fields of its configuration of its own: `cora`, or `cora:offset=true,layers=[1,2]`; and settings
    of its prompts: `cora:history=similar,similarity=text`."""

    method: str
    fields: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> "Contestant":
        """Raises ValueError for a method that is unknown and for what is no NAME=VALUE."""
        method, colon, rest = text.partition(":")
        if (task := load_method(method).task) != "rating":
            raise ValueError(f"methods: expected methods that score users and items, got {method}, of the task {task}")
        pairs = [part.partition("=") for part in re.split(r",(?=\w+=)", rest)] if colon else []
        if wrong := [name for name, equals, _ in pairs if not equals or not name]:
            raise ValueError(f"methods: expected METHOD or METHOD:NAME=VALUE,…, got {wrong[0]!r} in {text!r}")
        return cls(method, {name: value_of(name, value) for name, _, value in pairs})

    @property
    def label(self) -> str:
        """What the table calls it."""
        return ", ".join([label_of(self.method), *(f"{name}={value}" for name, value in self.fields.items())])

    @property
    def folder(self) -> str:
        named = "-".join([self.method, *(f"{name}={value}" for name, value in self.fields.items())])
        return re.sub(r"[^\w.=-]+", "_", named)

    def config(self, settings: Mapping[str, Any], seed: int) -> RunConfig:
        """The settings with this method, its fields, and those fields of `cora` that it has."""
        known = load_method(self.method).Config.field_names()
        shared = {name: value for name, value in settings.get("cora", {}).items() if name in known}
        of_prompts = {name: value for name, value in self.fields.items() if name in _OF_PROMPTS}
        fields = {name: value for name, value in self.fields.items() if name not in _OF_PROMPTS}
        own = {"method": self.method, "seed": seed, "cora": shared | fields}
        return RunConfig.from_dict({**settings, **of_prompts, **own})


def compare(
    settings: Mapping[str, Any], methods: Sequence[str], seeds: Sequence[int], out: str | Path
) -> dict[str, Any]:
    """Trains every method for every seed in a folder of its own below `out`; returns what its comparison.json holds.

    methods: as `Contestant` reads them; the first is the one whose differences to all others are given.
    settings: fields of RunConfig, of all runs; method and seed do not count, and a field in `cora` does for the methods
    that have it. A seed draws the same rows, vectors and order for all methods; runs that are finished are not made
    again, a stopped one goes on.

    Raises ValueError for no or repeated methods or seeds, for a field in `cora` that no method has, and what training
    raises.
    """
    contestants = [Contestant.parse(text) for text in methods]
    for name, values in (("methods", [one.folder for one in contestants]), ("seeds", list(seeds))):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{name}: expected at least one and each once, got {values}")
    known = {field for one in contestants for field in load_method(one.method).Config.field_names()}
    if unknown := sorted(set(settings.get("cora", {})) - known):
        raise ValueError(f"cora: none of the methods has {', '.join(unknown)}")
    plans = [[(one, one.config(settings, seed)) for one in contestants] for seed in seeds]
    scored: dict[str, list[pd.DataFrame]] = {}
    for plan in plans:
        for one, config in plan:
            run = RunFolder(Path(out) / f"{one.folder}-seed{config.seed}")
            train(config, run.path)
            found = pd.read_parquet(run.predictions)
            keys = identified(found)
            for name, label in [*BASELINES.items(), (one.method, one.label)]:
                if name in found and (one is contestants[0] or name == one.method):
                    scored.setdefault(label, []).append(keys.assign(score=found[name]))
    result = _summary(scored, contestants[0].label) | {"seeds": list(seeds)}
    content = json.dumps(result, indent=2) + "\n"
    write_files(Path(out), {"comparison.json": lambda file: file.write_text(content, encoding="utf-8")})
    return result


def _summary(scored: dict[str, list[pd.DataFrame]], reference: str) -> dict[str, Any]:
    """Mean and standard deviation over seeds of every metric, and how much better the reference is."""
    first = scored[reference]
    for label, frames in scored.items():
        for mine, other in zip(first, frames, strict=True):
            if not mine.drop(columns="score").equals(other.drop(columns="score")):
                raise ValueError(f"out: {label} scored other rows than {reference}; compare them in a new folder")
    methods = {}
    for label, frames in scored.items():
        found = pd.DataFrame([metrics(one, one["score"].to_numpy()) for one in frames])
        methods[label] = {
            "mean": _plain(found.mean()),
            "sd": _plain(found.std(ddof=1)) if len(frames) > 1 else None,
            "less_than_reference": None if label == reference else leads(first, frames),
        }
    return {"reference": reference, "rows": [len(one) for one in first], "methods": methods}


def _plain(values: pd.Series) -> dict[str, float | None]:
    return {str(name): None if pd.isna(value) else float(value) for name, value in values.items()}


def as_table(result: dict[str, Any]) -> str:
    """A `compare` as text: a line for each method with the reference's lead over it, and the same for rows of cold
    items where there are any."""
    seeds = ", ".join(map(str, result["seeds"]))
    end = f"{result['rows'][0]} rows; seeds {seeds}; ± is the standard deviation over seeds"
    has_cold_items = any("cold_items_auc" in one["mean"] for one in result["methods"].values())
    cold = ["", "rows of items without a training row", *_lines(result, "cold_items_")] if has_cold_items else []
    return "\n".join([*_lines(result, ""), *cold, end])


def _lines(result: dict[str, Any], part: str) -> list[str]:
    reference = result["reference"]
    width = max(len(label) for label in result["methods"]) + 2
    loss = not part  # of all rows alone
    head = f"{'':<{width}}{'auc':>16}{'uauc':>16}" + (f"{'log loss':>10}" if loss else "")
    lines = [f"{head}   {reference} is better by, auc and uauc (95 %)"]
    for label, one in result["methods"].items():
        line = f"{label:<{width}}" + "".join(f"{_with_spread(one, part + name):>16}" for name in ("auc", "uauc"))
        line += f"{one['mean']['log_loss']:>10.4f}" if loss else ""
        if one["less_than_reference"]:
            line += "   " + "  ".join(lead_text(one["less_than_reference"][part + name]) for name in ("auc", "uauc"))
        lines.append(line)
    return lines


def _with_spread(one: dict[str, Any], name: str) -> str:
    mean = one["mean"][name]
    if mean is None:
        return "-"
    return f"{mean:.4f}" + (f" ±{one['sd'][name]:.4f}" if one["sd"] else "")
