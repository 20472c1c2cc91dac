"""What `make gpu` found, in at most fifty lines and in a file that can be attached to an issue: no host name in it."""

import json
import re
from pathlib import Path
from typing import Any

SCHEMA = 1
LINES = 50


def text(found: dict[str, Any]) -> str:
    """The verdict first. `found`: the results by stage, as `bench.gpu.__main__.stages` made them."""
    environment = found["environment"]
    versions = ", ".join(f"{name} {environment[name]}" for name in ("driver", "torch", "cuda", "triton"))
    lines = [f"{verdict(found)} · {environment['gpu']}, {environment['multiprocessors']} multiprocessors · {versions}"]
    lines += [f"stage {name}: FAILED: {one['problem']}" for name, one in found.items() if _broke(one)]
    if pool := _of(found, "compile"):
        bad = [f"{what}: {', '.join(pool[what][:3])}" for what in ("spilling", "too large", "failed") if pool[what]]
        lines.append(f"compiled {pool['compiled']} kernels; {'; '.join(bad) or 'no spills, all fit'}")
    for backend, one in (_of(found, "right") or {}).items():
        lines.append(
            f"right, {backend}: {one['passed']} passed, {len(one['failed'])} failed, {len(one['absent'])} not run"
        )
        lines += [f"  {name}: {why}"[:160] for name, why in list(one["failed"].items())[:6]]
    if rates := _of(found, "ceilings"):
        host = ", ".join(f"{name} {1e6 * seconds:.0f}" for name, seconds in rates["host"].items())
        lines.append(
            f"ceilings: {rates['bytes'] / 1e12:.2f} TB/s, {rates['flops'] / 1e12:.0f} TFLOP/s, exposed y of addmm_ "
            f"{rates['exposed']:.2f}, mm at K + 64 {rates['wider']:.3f}, us of CPU for a launch: {host}"
        )
    if rows := _of(found, "speed"):
        lines.append("time over the frozen linear's, as graphs with cold caches (eager beside; predicted / measured)")
        lines += [_row(row) for row in rows[:20]]
    if tuned := _of(found, "tune"):
        worst = max(tuned["problems"].items(), key=lambda item: item[1]["regret"], default=None)
        if worst:
            regret = f"{worst[1]['regret']:.2f} at {worst[0]}"
            lines.append(f"tuned {len(tuned['problems'])} problems; the default's worst regret is {regret}")
    return "\n".join(lines[:LINES])


def verdict(found: dict[str, Any]) -> str:
    """Whether all is right, and the speed kept of the frozen linear, over the shapes."""
    wrong = sum(len(one["failed"]) for one in (_of(found, "right") or {}).values())
    broken = [name for name, one in found.items() if _broke(one)]
    kept = {what: retention(found, backward) for what, backward in (("forward", False), ("forward + backward", True))}
    speeds = ", ".join(f"{kept_:.2f} {what}" for what, kept_ in kept.items() if kept_ is not None)
    complete = not wrong and not broken and _of(found, "right")
    right = "RIGHT" if complete else f"WRONG ({wrong} cases, {len(broken)} stages)"
    return f"{right}; speed kept of a Llama-3-8B layer's frozen linears: {speeds or 'not measured'}"


def retention(found: dict[str, Any], backward: bool) -> float | None:
    """Frozen over ours, summed over the linears of a Llama-3-8B layer, as often as it has each; None if unmeasured."""
    often = {"q": 2, "k": 2, "up": 2, "down": 1}  # o is as q, v as k, gate as up
    frozen = ours = 0.0
    for linear, times in often.items():
        rows = [
            row
            for row in _of(found, "speed") or []
            if row["shape"].startswith(f"Llama-3-8B {linear} ")
            and row["backward"] == backward
            and " T1 " not in row["shape"]
        ]
        name = rows and next((n for n in ("ours: triton", "ours: cuda") if n in rows[0]["graph"]), None)
        if not name or "frozen linear" not in rows[0]["graph"]:
            return None
        frozen += times * rows[0]["graph"]["frozen linear"]
        ours += times * rows[0]["graph"][name]
    return frozen / ours


def _row(row: dict[str, Any]) -> str:
    """One shape: every contestant's time over the floor's."""
    floor, eager = row["graph"].get("frozen linear"), row["eager"]
    if floor is None:
        return f"  {row['shape']}: the frozen linear did not run"
    cells = []
    for name, seconds in row["graph"].items():
        if name == "frozen linear" or (":" in name and not name.startswith("ours")):
            continue
        cell = (
            f"{name} {seconds / floor:.2f} ({eager[name] / eager['frozen linear']:.2f})"
            if name in eager
            else f"{name} {seconds / floor:.2f}"
        )
        predicted = row["predicted"].get(name.removeprefix("ours: "))
        cells.append(f"{cell} p/m {predicted / seconds:.2f}" if predicted else cell)
    return f"  {row['shape']}{' +bwd' if row['backward'] else ''}: {', '.join(cells)}"


def _of(found: dict[str, Any], stage: str) -> Any:
    one = found.get(stage)
    ran = not isinstance(one, dict) or set(one) not in ({"problem"}, {"absent"})
    return one if ran else None


def _broke(one: Any) -> bool:
    return isinstance(one, dict) and set(one) == {"problem"}


def write(found: dict[str, Any], folder: Path) -> Path:
    """The file of this GPU and day; `python -m bench.report --gpu` puts all of them into the README."""
    environment = found["environment"]
    name = re.sub(r"[^a-z0-9]+", "-", environment["gpu"].lower()).strip("-")
    path = folder / f"{name}-{environment['date']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": SCHEMA, **found}, indent=1) + "\n", encoding="utf-8")
    return path


def table(folder: Path) -> str:
    """The reports of the folder as a Markdown table for the README; one line where there are none."""
    reports = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    for path, found in reports:
        if found.get("schema") != SCHEMA:
            raise ValueError(f"{path.name}: schema {found.get('schema')!r}, expected {SCHEMA}: run make gpu again")
    if not reports:
        return "No GPU has been measured yet: `make gpu` measures the one that is there."
    lines = [
        "| GPU | measured | with | right | speed kept, forward | forward + backward |",
        "|---|---|---|---|---|---|",
    ]
    for path, found in reports:
        environment = found["environment"]
        right = ", ".join(
            f"{name} {one['passed']} of {one['passed'] + len(one['failed'])}"
            for name, one in (_of(found, "right") or {}).items()
        )
        kept = ["–" if r is None else f"{r:.2f}" for r in (retention(found, False), retention(found, True))]
        cells = (
            f"[{environment['gpu']}]({path.parent.name}/{path.name})",
            environment["date"],
            f"torch {environment['torch']}, Triton {environment['triton']}",
            right or "–",
            *kept,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
