"""What the command `cora` does: one function a command."""

import argparse
import json
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from cora.data import NAMED_DATA
from cora.fetching import cache_folder
from cora.methods import load_method
from cora.prompts.template import one_line
from cora.runs.folder import RunFolder
from cora.runs.metrics import as_table, joined, summary
from cora.runs.settings import RunConfig, load_settings

# The settings that decide what `cora fit` makes.
OF_VECTORS = (
    "data", "positive_rating", "split", "valid_from", "test_from", "leave_last", "cold_share", "vectors_share",
    "collaborative", "dim", "seed",
)  # fmt: skip

# Those that decide what `cora thoughts` writes.
OF_THOUGHTS = (
    "data", "model", "positive_rating", "split", "valid_from", "test_from", "leave_last", "cold_share", "dtype", "seed",
)  # fmt: skip

# The settings that decide what `cora index` makes.
OF_CODES = (
    "data", "model", "split", "valid_from", "test_from", "leave_last", "cold_share", "dtype", "seed",
)  # fmt: skip


def train_command(options: argparse.Namespace) -> None:
    config = RunConfig.from_dict(_given(options))
    if load_method(config.method).task == "next item":
        from cora.runs.next_items_train import as_text, train_next_items

        text = as_text(train_next_items(config, options.out))
    else:
        from cora.runs.train import train

        text = as_table(train(config, options.out))
    print(f"\n{text}\n\npicture  {RunFolder(options.out).picture}\nmodel    {RunFolder(options.out).model}")


def fit_command(options: argparse.Namespace) -> None:
    from cora.runs.vectors import fit_vectors

    given = {name: getattr(options, name) for name in OF_VECTORS if getattr(options, name) is not None}
    # The settings of a run name a language model; none is read here.
    result = fit_vectors(RunConfig.from_dict({**given, "model": "none"}), options.out)
    print(f"\n{as_table(result)}\n\nvectors  {options.out}")


def thoughts_command(options: argparse.Namespace) -> None:
    from cora.runs.thoughts import write_thoughts

    given = {name: getattr(options, name) for name in OF_THOUGHTS if getattr(options, name) is not None}
    thoughts = write_thoughts(
        RunConfig.from_dict(given), options.rows, options.out, options.cot, options.new_tokens, options.candidates,
        options.run, options.max_minutes,
    )  # fmt: skip
    row = thoughts.rows.iloc[len(thoughts.rows) // 2]
    print(f"\n{len(thoughts.rows)} rows, {len(thoughts.item_ids)} items; for example\n  {one_line(row[options.cot])}")
    print(f"thoughts  {options.out}")


def index_command(options: argparse.Namespace) -> None:
    from cora.runs.index import index

    given = {name: getattr(options, name) for name in OF_CODES if getattr(options, name) is not None}
    index({"model": "", **given}, options.vectors, dict(options.recipe), options.out)
    print(f"\ncodes  {options.out}")


def compare_command(options: argparse.Namespace) -> None:
    from cora.runs.compare import as_table, compare

    print(f"\n{as_table(compare(_given(options), options.methods, options.seeds, options.out))}")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the options and their file give."""
    given = {
        name: value for name, value in vars(options).items() if name in settings_with_options() and value is not None
    }
    settings = load_settings(options.config) if options.config else {}
    for name in ("cora", "trainer"):
        of_file = settings.get(name) or {}
        if not isinstance(of_file, dict):
            raise TypeError(f"{name}: expected names with values in {options.config}, got {of_file!r:.80}")
        given[name] = {**of_file, **dict(getattr(options, name))}
    return {**settings, **given}


def evaluate_command(options: argparse.Namespace) -> None:
    from cora.runs.score import evaluate

    result = evaluate(options.run, options.data, options.part, options.rows, options.scores)
    print(f"\n{as_table(result)}")
    if options.json:
        RunFolder(options.run).write(Path(options.json), json.dumps(result, indent=2) + "\n")


def score_command(options: argparse.Namespace) -> None:
    from cora.runs.recommend import recommend

    found = recommend(options.run, options.user, options.top, options.candidates)
    history = ", ".join(map(one_line, found.history[-3:]))
    print(f"user {options.user} liked {history or 'nothing so far'}" + (" most recently" if history else ""))
    ranks = found.table.get("collaborative_rank", pd.Series(0, index=found.table.index))
    for place, (title, probability, rank) in enumerate(
        zip(found.table["title"], found.table["probability"], ranks, strict=True), 1
    ):
        print(f"{place:>3}  {probability:.3f}  {one_line(title)}" + (f"  (candidate {rank})" if rank else ""))


def recommend_command(options: argparse.Namespace) -> None:
    from cora.runs.recommend_all import recommend_all

    users = recommend_all(options.run, options.users, options.out, options.top, options.candidates, options.ray)
    print(f"recommendations for {users} users in {options.out}")


def explain_command(options: argparse.Namespace) -> None:
    from cora.runs.explain import as_text, explain, save

    found = explain(options.run, options.user, options.item, options.neighbours)
    print(f"{as_text(found, options.user)}\npicture  {save(found, options.run, options.user, options.item)}")


def export_command(options: argparse.Namespace) -> None:
    from cora.export.runs import export, export_scorer

    if not options.user:
        print(f"model  {export_scorer(options.run, options.out)}")
        return
    for folder in export(options.run, options.user, options.item, options.out):
        print(f"adapter  {folder}")


def serve_command(options: argparse.Namespace) -> None:
    if missing := [name for name in ("fastapi", "prometheus_client", "uvicorn") if find_spec(name) is None]:
        raise ValueError(f"serve: {', '.join(missing)} missing, install the extra `serve` of cora-kernels")
    from cora.serving.app import serve
    from cora.serving.batching import Limits

    limits = Limits(options.queue, options.batch_prompts, options.deadline)
    serve(options.run, options.host, options.port, limits)


def info_command(options: argparse.Namespace) -> None:
    if options.run:
        runs = [RunFolder.existing(run) for run in options.run]
        for run in runs:
            print(run.settings.read_text(encoding="utf-8"))
        tasks = {load_method(run.config().method).task for run in runs}
        if tasks == {"rating"}:
            print(as_table(summary(joined([pd.read_parquet(run.predictions) for run in runs]))))
        elif tasks == {"next item"}:
            from cora.runs.next_items_train import as_text

            print("\n\n".join(as_text(json.loads(run.metrics.read_text(encoding="utf-8"))) for run in runs))
        else:
            raise ValueError("run: expected runs that all score users and items, or all say what comes next, got both")
        return
    from cora.llm.loading import NAMED_MODELS
    from cora_kernels.info import report

    print(report())
    print(f"named data    {', '.join(NAMED_DATA)}")
    print(f"named models  {', '.join(NAMED_MODELS)}")
    print(f"cache         {cache_folder()}")


def settings_with_options() -> dict[str, Any]:
    """The fields of RunConfig that have an option of their own."""
    return {one.name: one for one in fields(RunConfig) if "help" in one.metadata}
