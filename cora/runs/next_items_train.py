"""Trains a method that says which item comes next, ranks the test rows by it and by what needs no language model."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import TrainingArguments

from cora.collaborative import CollaborativeEmbeddings
from cora.llm.loading import chosen_dtype, load_base
from cora.methods import load_method
from cora.runs.folder import RunFolder
from cora.runs.next_items import NextItems, PastVectors, prepare_next_items
from cora.runs.next_items_baselines import KINDS, baseline_ranks
from cora.runs.next_items_fit import MEASURE, fit_next_items, next_item_arguments
from cora.runs.pictures import ranking_picture
from cora.runs.settings import RunConfig
from cora.runs.vectors import collaborative_vectors
from cora.sequences import Ranking, as_table
from cora.sequences.ranking import CUTS, ranks_in_list


def train_next_items(config: RunConfig, out: str | Path) -> dict[str, Any]:
    """Trains, evaluates and saves one run in the folder `out`; returns what its metrics.json holds.

    The test rows that have an earlier one of their user (of a part called valid where there is no test) are ranked
    among all items by what needs no language model (popularity, item cosine, Markov, EASE, GRU4Rec, SASRec) and by the
    method, whose best checkpoint by NDCG@10 of validation rows without seen items is kept. Called again for the same
    folder it goes on where it was stopped.

    Raises what reading the data, the codes and the model raises; FileExistsError for a folder that holds other things
    or that another process trains in; ValueError for a training that diverges.
    """
    run = RunFolder(out)
    prepared = prepare_next_items(config, run)
    arguments = next_item_arguments(config, run)
    with run.opened(config) if arguments.process_index == 0 else nullcontext():
        if run.metrics.is_file():
            print(f"{run.path} holds this run, finished")
            return dict(json.loads(run.metrics.read_text(encoding="utf-8")))
        return _train(run, prepared.with_codes(run), arguments)


def _train(run: RunFolder, prepared: NextItems, arguments: TrainingArguments) -> dict[str, Any]:
    config, sequences = prepared.config, prepared.sequences
    part = "test" if "test" in prepared.splits.parts() else "valid"
    events = prepared.targets(part, config.test_rows)
    found = baseline_ranks(run, prepared, events)
    print(_table(found, sequences.user[events]))
    method = load_method(config.method)
    embeddings = None
    if prepared.method_config.generator is not None:
        embeddings = collaborative_vectors(prepared, run)
    torch.manual_seed(config.seed)
    base = load_base(config.model, dtype=chosen_dtype(config.dtype, arguments.device))
    model = method.Model(base, prepared.method_config, prepared.codes, embeddings).to(arguments.device)
    print(model.patch)
    encoder = method.tasks.TaskEncoder(prepared.tokenizer, model.tokens.item_tokens, prepared.item_titles)
    model.tokens.start(base, encoder.titles)
    history = _fit(run, prepared, arguments, model, encoder, method.tasks, embeddings)
    vectors = None if embeddings is None else PastVectors(embeddings, sequences)
    width = max(prepared.method_config.beam, *CUTS)
    print(f"{len(events)} {part} rows ranked by {method.label}")
    both = prepared.ranked(model, encoder, events, width, vectors, list(KINDS.values()))
    for kind, ranked in zip(KINDS, both, strict=True):
        found[kind][method.label] = ranks_in_list(ranked.items.numpy(), ranked.scores.numpy(), sequences.item[events])
    return _written(run, prepared, part, events, found, history)


def _fit(
    run: RunFolder,
    prepared: NextItems,
    arguments: TrainingArguments,
    model: Any,
    encoder: Any,
    tasks: Any,
    embeddings: CollaborativeEmbeddings | None,
) -> list[dict[str, Any]]:
    config, sequences = prepared.config, prepared.sequences
    vectors = None if embeddings is None else PastVectors(embeddings, sequences)
    examples = tasks.Tasks(encoder, sequences.training(), prepared.method_config, config.seed)
    events = prepared.targets("valid", config.valid_rows)
    width = max(prepared.method_config.beam, 10)

    def collate(batch: list[Any]) -> dict[str, Any]:
        made: dict[str, Any] = tasks.collated(batch)
        if vectors is not None:
            made["user_vectors"] = vectors.of([(one.user, one.before) for one in batch])
        return made

    def validate() -> dict[str, float]:
        (ranked,) = prepared.ranked(model, encoder, events, width, vectors)
        ranks = ranks_in_list(ranked.items.numpy(), ranked.scores.numpy(), sequences.item[events])
        ranking = Ranking(ranks, sequences.user[events])
        return {MEASURE: float(ranking.values("ndcg", 10).mean()), "hr@10": float(ranking.values("hr", 10).mean())}

    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
    print(f"{examples.epoch} examples an epoch, {arguments.max_steps} steps of {batch}; {len(events)} validation rows")
    return fit_next_items(config, run, arguments, model, examples, collate, validate)


def _written(
    run: RunFolder,
    prepared: NextItems,
    part: str,
    events: np.ndarray,
    found: dict[str, dict[str, np.ndarray]],
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    """predictions.parquet, metrics.json and the picture of the ranks found; what metrics.json holds."""
    sequences, ours = prepared.sequences, load_method(prepared.config.method).label
    users = sequences.user[events]
    rows = pd.DataFrame(
        {
            "user_id": [sequences.user_ids[user] for user in users],
            "item_id": [sequences.item_ids[item] for item in sequences.item[events]],
        }
    )
    for kind, ranks in found.items():
        for name, of_rows in ranks.items():  # the largest number stands for a rank that is not known
            rows[f"{name}, seen {kind}"] = np.minimum(of_rows, len(sequences.item_ids) + 1)
    run.write(run.predictions, rows)
    rankings = {kind: {name: Ranking(one, users) for name, one in ranks.items()} for kind, ranks in found.items()}
    result: dict[str, Any] = {"part": part, "rows": len(events), "users": len(np.unique(users))}
    result |= {
        f"seen {kind}": {name: one.metrics(prepared.config.seed) for name, one in of.items()}
        for kind, of in rankings.items()
    }
    result["leads"] = {
        f"{measure}, seen {kind}": {
            name: of[ours].lead(one, *_split(measure), prepared.config.seed) for name, one in of.items() if name != ours
        }
        for kind, of in rankings.items()
        for measure in ("hr@10", MEASURE)
    }
    valid = [one[f"eval_{MEASURE}"] for one in history if f"eval_{MEASURE}" in one]
    result |= {f"valid_{MEASURE}": max(valid, default=None), "steps": history[-1]["step"]}
    ranking_picture(history, MEASURE, run.picture)
    run.write(run.metrics, json.dumps(result, indent=2) + "\n")
    print(_table(found, users))
    return result


def as_text(result: dict[str, Any]) -> str:
    """The tables of metrics.json."""
    parts = [f"seen items {kind}\n{as_table(result[f'seen {kind}'])}" for kind in KINDS]
    return "\n\n".join([*parts, f"{result['rows']} {result['part']} rows of {result['users']} users"])


def _table(found: dict[str, dict[str, np.ndarray]], users: np.ndarray) -> str:
    kinds = {kind: {name: Ranking(one, users).metrics() for name, one in of.items()} for kind, of in found.items()}
    return "\n\n".join(f"seen items {kind}\n{as_table(of)}" for kind, of in kinds.items())


def _split(measure: str) -> tuple[str, int]:
    name, _, cut = measure.partition("@")
    return name, int(cut)
