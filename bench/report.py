"""python -m bench.report RUN.json [--out FOLDER]: the Markdown table and the pictures of a run of `pytest bench/`.

python -m bench.report --gpu: the reports of `make gpu` in bench/results/gpu as the table of the README.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.contestants import CONTESTANTS
from bench.gpu.report import table as gpu_table
from bench.machine import slug
from bench.pictures import draw
from bench.table import Row, attentions, linears, mean_ratio, models, not_first, verdicts


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="what pytest bench/ --benchmark-json wrote")
    parser.add_argument("--gpu", action="store_true", help="put the reports of make gpu into the README instead")
    parser.add_argument("--readme", type=Path, default=Path(__file__).parents[1] / "README.md")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    if options.gpu == (options.run is not None):
        parser.error("expected either RUN.json or --gpu")
    if options.gpu:
        merge_gpus(options.out / "gpu", options.readme)
        return
    run = json.loads(options.run.read_text(encoding="utf-8"))
    name = f"{slug(run['machine_info']['cora'])}-{run['datetime'][:10]}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    pictures = draw(run, options.out, name)
    (options.out / f"{name}.md").write_text(markdown(run, pictures), encoding="utf-8")
    (options.out / "processors.md").write_text(processors(options.out), encoding="utf-8")
    print(summary(run))
    print(f"\nwritten: {options.out / name}.json, .md and {len(pictures)} pictures")


def merge_gpus(folder: Path, readme: Path) -> None:
    """The table of the GPUs that were measured, in its place in the README.

    Raises ValueError where the README has no such place, or a report is of another schema.
    """
    start, end = "<!-- GPUs, by python -m bench.report --gpu -->", "<!-- end of GPUs -->"
    text = readme.read_text(encoding="utf-8")
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{readme} must hold {start!r} and {end!r} once each")
    before, _, rest = text.partition(start)
    after = rest.partition(end)[2]
    readme.write_text(f"{before}{start}\n{gpu_table(folder)}\n{end}{after}", encoding="utf-8")
    print(f"written: {readme}")


def processors(folder: Path) -> str:
    """A row for every run whose JSON is in the folder: what ours takes there, by processor and instruction set."""
    sets = ("forward fp32", "train fp32", "forward bf16", "train bf16", "decode")
    body = []
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        cora = run["machine_info"]["cora"]
        ratios = [mean_ratio([row for row in linears(run) if name in row.info.get("sets", ())]) for name in sets]
        cells = ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        reached = f"{cora['peaks']['fp32'] / 1e9:.0f}, {cora['peaks']['bf16'] / 1e9:.0f}"
        machine = [cora["cpu"].split(",")[0], cora.get("kernels", "–"), cora["threads"], run["datetime"][:10], reached]
        body.append(machine + cells)
    head = ["processor", "our kernels", "threads", "day", "torch's GFLOP/s in fp32, bf16"]
    text = "Time of ours over F.linear's, or over the two products of a backward; geometric means of each set's shapes."
    return f"# Processors and instruction sets\n\n{text}\n\n{_table([*head, *sets], body)}\n"


def markdown(run: dict[str, Any], pictures: dict[str, str]) -> str:
    """The whole report. `pictures`: file by caption."""
    parts = [f"# Benchmark of {run['datetime'][:10]}", summary(run)]
    parts += [f"![{caption}]({file})" for caption, file in pictures.items()]
    for kind, title in (("forward", "Forward"), ("train", "Forward + backward (dx, dA, dB)")):
        chosen = [row for row in linears(run) if row.info["kind"] == kind]
        if chosen:
            parts += [f"## {title}: time over the frozen linear's", _ratios(chosen)]
    if attentions(run):
        parts += ["## Attention within packed prompts, forward + backward: ms", _attentions(run)]
    parts += ["## Not run, and why", _absences(run)]
    return "\n\n".join(parts) + "\n"


def summary(run: dict[str, Any]) -> str:
    """Machine, verdicts, means and losses: what a README shows."""
    cora = run["machine_info"]["cora"]
    peaks = cora["peaks"]
    machine = f"{cora['cpu']}, {cora['threads']} threads; our kernels: {cora['kernels']}; GPU: {cora['gpu']}; torch "
    machine += f"{cora['torch']}; Python {cora['python']}; {cora['system']}. Reached by torch: "
    machine += (
        f"{peaks['fp32'] / 1e9:.0f} GFLOP/s fp32, {peaks['bf16'] / 1e9:.0f} bf16, {peaks['bytes'] / 1e9:.1f} GB/s."
    )
    parts = [f"Measured {run['datetime'][:10]} by `make bench` on {machine}", _verdicts(run), _means(run), _noise(run)]
    losses = not_first(run)
    judged = [row for row in (*linears(run), *attentions(run)) if row.first is not None]
    if judged:
        parts.append(f"First of all contestants in {len(judged) - len(losses)} of {len(judged)} cases.")
    for row in losses:
        peer = row.fastest_peer or ""
        behind = row.medians[row.ours or ""] / row.medians[peer]
        parts.append(f"* not first: {row.info['shape']} ({row.info['kind']}): {peer}, ours {behind:.2f} × its time")
    parts += [_models(run), _shares(run)]
    if cora["gpu"] == "none":
        parts.append("GPU results are absent: nobody has run this on one yet. `make bench` on a GPU writes them.")
    return "\n\n".join(part for part in parts if part)


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(line) + " |" for line in body])


def _verdicts(run: dict[str, Any]) -> str:
    body = []
    for verdict in verdicts(run):
        sign = "≤" if verdict.at_most else "≥"
        met = {True: "yes", False: "**no**", None: "not measured"}[verdict.met]
        measured = "–" if verdict.measured is None else f"{verdict.measured:.2f}"
        body.append([verdict.what, measured, f"{sign} {verdict.limit:.2f}", met])
    return _table(["CPU backend", "measured", "limit", "met"], body)


def _means(run: dict[str, Any]) -> str:
    kinds = {
        title: [row for row in linears(run) if row.info["kind"] == kind and row.info["mode"] == mode]
        for kind, mode, title in (
            ("forward", "eager", "forward"),
            ("train", "eager", "forward + backward"),
            ("forward", "graph", "forward, CUDA graph"),
            ("train", "graph", "forward + backward, CUDA graph"),
        )
    }
    kinds = {title: chosen for title, chosen in kinds.items() if chosen}
    body = []
    for contestant in CONTESTANTS:
        ratios = [mean_ratio(chosen, contestant.name) for chosen in kinds.values()]
        if any(ratio is not None for ratio in ratios):
            counts = [sum(contestant.name in row.medians for row in chosen) for chosen in kinds.values()]
            cells = ["–" if r is None else f"{r:.2f} ({n})" for r, n in zip(ratios, counts, strict=True)]
            body.append([f"**{contestant.name}**" if contestant.ours else contestant.name, contestant.about, *cells])
    return _table(["time over the floor's, geometric mean (cases)", "what", *kinds], body)


def _noise(run: dict[str, Any]) -> str:
    spreads = [spread for row in linears(run) for spread in row.spreads.values()]
    if not spreads:
        return ""
    return (
        f"Medians of interleaved rounds; half of all samples lie within {statistics.median(spreads):.1%} of one "
        f"another for the typical contestant, {max(spreads):.0%} for the worst."
    )


def _ratios(chosen: list[Row]) -> str:
    floors = {row.floor for row in chosen}
    names = [c.name for c in CONTESTANTS if any(c.name in row.medians for row in chosen) and c.name not in floors]
    body = []
    for row in chosen:
        deltas = [name for name in names if name in row.medians and not row.entries[name]["floor"]]
        best = min((row.medians[name] for name in deltas), default=None)
        cells = [f"{1e3 * row.medians[row.floor]:.3f}" if row.floor else "–"]
        for name in names:
            ratio = row.ratio(name)
            text = "–" if ratio is None else f"{ratio:.2f}"
            cells.append(f"**{text}**" if ratio is not None and row.medians[name] == best else text)
        body.append([row.info["shape"] + ("" if row.info["mode"] == "eager" else " (graph)"), *cells])
    return _table(["case", "floor, ms", *names], body)


def _attentions(run: dict[str, Any]) -> str:
    names = list(dict.fromkeys(name for row in attentions(run) for name in (*row.medians, *row.absent)))
    body = []
    for row in attentions(run):
        best = min(row.medians.values(), default=None)
        cells = []
        for name in names:
            seconds = row.medians.get(name)
            text = "–" if seconds is None else f"{1e3 * seconds:.2f}"
            cells.append(f"**{text}**" if seconds is not None and seconds == best else text)
        body.append([row.info["shape"], *cells])
    return _table(["case", *names], body)


def _models(run: dict[str, Any]) -> str:
    body = []
    for row in models(run):
        for name, seconds in row.medians.items():
            info = row.entries[name]
            memory = info["memory"].get("bytes")
            peak = info["memory"].get("reason", "–") if memory is None else f"{memory / 2**20:.0f} MiB"
            over = row.ratio(name)
            cells = [
                f"{seconds:.2f} s",
                f"{info['tokens'] / seconds:.0f}",
                "–" if over is None else f"{over:.2f}",
                peak,
            ]
            body.append([info["what"], name, *cells, f"{row.spreads[name]:.0%}"])
        body += [[row.info["what"], name, reason, "–", "–", "–", "–"] for name, reason in row.absent.items()]
    if not body:
        return ""
    head = ["SmolLM2-135M bf16", "way", "time", "tokens/s", "over frozen", "peak memory beyond the model", "spread"]
    prompts = models(run)[0].info["case"].partition("bf16, ")[2]
    return f"{prompts}:\n\n" + _table(head, body)


def _shares(run: dict[str, Any]) -> str:
    """Where the step and the scoring batch spend their time."""
    entries = (row.entries.get("ours", {}) for row in models(run))
    found = {
        f"{entry['what']}, {entry['shares']['dtype']}": entry["shares"]["over"]
        for entry in entries
        if "shares" in entry
    }
    if not found:
        return ""
    kinds = next(iter(found.values()))
    body = [[kind, *(f"{over[kind]:.2f}" for over in found.values())] for kind in kinds]
    return "Time of ours over that of torch's products of all linears:\n\n" + _table(["", *found], body)


def _absences(run: dict[str, Any]) -> str:
    reasons: dict[tuple[str, str], int] = {}
    for missing in run["not_run"]:
        key = missing["contestant"], ("wrong: " if missing["wrong"] else "") + missing["reason"]
        reasons[key] = reasons.get(key, 0) + 1
    for entry in run["memory"]:
        if "reason" in entry:
            key = entry["contestant"], entry["reason"]
            reasons[key] = reasons.get(key, 0) + 1
    return _table(["contestant", "cases", "reason"], [[name, str(n), why] for (name, why), n in reasons.items()])


if __name__ == "__main__":
    main()
