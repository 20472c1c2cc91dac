"""What the JSON of a run says: rows, ratios to the floor within the run, verdicts of the acceptance."""

from dataclasses import dataclass, field
from typing import Any

from bench.cases import geometric_mean


@dataclass
class Row:
    """One case: median seconds by contestant, the spread of each (interquartile over median), reasons for absences."""

    case: str
    info: dict[str, Any]
    medians: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    floor: str = ""

    def ratio(self, name: str, to: str | None = None) -> float | None:
        """Time over the floor's (or over `to`'s); None where either has no time."""
        other = self.medians.get(to or self.floor)
        own = self.medians.get(name)
        return None if own is None or other is None else own / other

    @property
    def ours(self) -> str | None:
        """The backend of ours that an automatic choice takes: the first that ran."""
        return next((name for name in self.medians if self.entries[name]["ours"]), None)

    @property
    def fastest_peer(self) -> str | None:
        """The fastest of the others; floors compute no delta and do not count."""
        peers = [name for name in self.medians if not (self.entries[name]["ours"] or self.entries[name]["floor"])]
        return min(peers, key=lambda name: self.medians[name], default=None)

    @property
    def first(self) -> bool | None:
        if self.ours is None or self.fastest_peer is None:
            return None
        return self.medians[self.ours] <= self.medians[self.fastest_peer]


def rows(run: dict[str, Any]) -> list[Row]:
    """The cases of a run in the order they were measured."""
    found: dict[str, Row] = {}
    for benchmark in run["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        row = found.setdefault(info["case"], Row(info["case"], info))
        name = info["contestant"]
        row.medians[name] = stats["median"]
        row.spreads[name] = stats["iqr"] / stats["median"]
        row.entries[name] = info
        if info["floor"]:
            row.floor = row.floor or name
    for missing in run["not_run"]:
        row = found.setdefault(missing["case"], Row(missing["case"], missing))
        row.absent[missing["contestant"]] = ("wrong: " if missing["wrong"] else "") + missing["reason"]
    return list(found.values())


def linears(run: dict[str, Any]) -> list[Row]:
    return [row for row in rows(run) if row.info["kind"] in ("forward", "train")]


def attentions(run: dict[str, Any]) -> list[Row]:
    return [row for row in rows(run) if row.info["kind"] == "attention"]


def models(run: dict[str, Any]) -> list[Row]:
    return [row for row in rows(run) if row.info["kind"] == "endtoend"]


def mean_ratio(chosen: list[Row], name: str | None = None, to: str | None = None) -> float | None:
    """Geometric mean over the rows where both have a time; `name` None: ours."""
    ratios = [row.ratio(name or row.ours or "", to) for row in chosen]
    known = [ratio for ratio in ratios if ratio is not None]
    return geometric_mean(known) if known else None


def not_first(run: dict[str, Any]) -> list[Row]:
    return [row for row in (*linears(run), *attentions(run)) if row.first is False]


@dataclass(frozen=True)
class Verdict:
    """One line of the acceptance. `measured` None: nothing to judge."""

    what: str
    measured: float | None
    limit: float
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


@dataclass(frozen=True)
class Promise:
    """Time over the floor's, mean and worst shape, or None; for the backward also what eager takes over ours."""

    kind: str
    dtype: str
    mean: float
    worst: float | None = None
    eager: float | None = None


# By instruction set. Without instructions for bf16 torch's products are many times slower in it than in fp32.
_PROMISES = {
    "avx2": (
        Promise("forward", "fp32", 0.97, 1.03),
        Promise("train", "fp32", 1.00, 1.06, eager=1.15),
        Promise("forward", "bf16", 1.00, 1.05),
        Promise("train", "bf16", 1.05),
    )
}
_USUAL = (
    Promise("forward", "fp32", 0.90, 1.05),
    Promise("forward", "bf16", 1.00, 1.05),
    Promise("train", "fp32", 0.95, eager=1.25),
    Promise("train", "bf16", 1.05, eager=1.25),
)


def verdicts(run: dict[str, Any]) -> list[Verdict]:
    """What the CPU backend promises, from the cases that belong to it."""
    found = []
    sets = {name: [row for row in linears(run) if name in row.info.get("sets", ())] for name in _sets(run)}
    for promise in _PROMISES.get(run["machine_info"]["cora"].get("kernels"), _USUAL):
        chosen = sets.get(f"{promise.kind} {promise.dtype}", [])
        what = f"{'forward' if promise.kind == 'forward' else 'forward + backward'} {promise.dtype}"
        found.append(Verdict(f"{what} / floor, mean of {len(chosen)} shapes", mean_ratio(chosen), promise.mean))
        ratios = [r for row in chosen if (r := row.ratio(row.ours or "")) is not None]
        if promise.worst is not None:
            found.append(Verdict(f"{what} / floor, worst shape", max(ratios, default=None), promise.worst))
        if promise.eager is None:
            continue
        eager = [1 / r for row in chosen if (r := row.ratio(row.ours or "", "eager bmm")) is not None]
        compiled = [1 / r for row in chosen if (r := row.ratio(row.ours or "", "torch.compile")) is not None]
        mean = geometric_mean(eager) if eager else None
        found.append(Verdict(f"eager bmm / ours, {what}, mean", mean, promise.eager, False))
        found.append(Verdict(f"torch.compile / ours, {what}, worst shape", min(compiled, default=None), 1.0, False))
    for row in sets.get("decode", []):
        found.append(Verdict(f"decode / floor, {row.info['shape']}", row.ratio(row.ours or ""), 1.15))
    for row in models(run):
        if row.info["what"] == "training step":
            speed = row.ratio("stock transformers", "ours")
            found.append(Verdict("stock transformers / ours, training step of SmolLM2-135M bf16", speed, 2.0, False))
            found.append(Verdict("training step / frozen LLM's forward + dx", row.ratio("ours"), 1.10))
        if row.info["what"].startswith("100 candidates"):
            shared = row.ratio("ours", "separate prompts")
            found.append(Verdict("shared prefix / separate prompts, 100 candidates of one user", shared, 0.20))
        if row.info["what"].startswith("training rows"):
            speed = row.ratio("separate prompts", "ours")
            found.append(Verdict("separate prompts / shared prefix, 8 training rows of each user", speed, 3.0, False))
    return found


def _sets(run: dict[str, Any]) -> set[str]:
    return {name for row in linears(run) for name in row.info.get("sets", ())}
