"""Trains a method on interactions: vectors, prompts, transformers' Trainer, and what a run leaves behind."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from transformers import TrainingArguments

from cora.collaborative import CollaborativeEmbeddings
from cora.llm.loading import chosen_dtype, load_base
from cora.methods import load_method
from cora.methods.model import MethodModel
from cora.prompts import PromptDataset
from cora.runs.distributed import is_main, one_speaks, wait_for_all
from cora.runs.families import rows_of_training
from cora.runs.fit import fit, training_arguments
from cora.runs.folder import RunFolder
from cora.runs.gates import collapse, gates_picture, samples_of, weights_of_users
from cora.runs.metrics import summary
from cora.runs.new_items import with_guesses
from cora.runs.pictures import training_picture
from cora.runs.prepare import Prepared, prepare
from cora.runs.score import collaborative_scores, score_together, unscored
from cora.runs.settings import RunConfig
from cora.runs.similarity import directions_of, write_title_vectors
from cora.runs.vectors import collaborative_vectors
from cora.runs.without_prompts import train_without_prompts


def train(config: RunConfig, out: str | Path) -> dict[str, Any]:
    """Trains, evaluates and saves one run in the folder `out`; returns what its metrics.json holds.

    The test rows (the validation rows where the data has no test part) are scored by the collaborative vectors alone,
    by the language model alone and by the method, whose best checkpoint by validation AUC is kept. Called again for the
    same folder it goes on where it was stopped, from the last checkpoint, to the same losses. Several processes, as
    torchrun starts them, train and score together, batch_size rows each a step; one of them prints and writes.

    Raises what reading the data and the model raises; FileExistsError for a folder that holds other things or that
    another process trains in; ValueError for a training that diverges.
    """
    run = RunFolder(out)
    if load_method(config.method).fit is not None:
        return train_without_prompts(config, run)
    prepared = prepare(config)
    arguments = training_arguments(config, run)
    part, rows = _rows(prepared, arguments.world_size)
    with one_speaks(), run.opened(config) if is_main() else nullcontext():
        wait_for_all()
        if run.metrics.is_file():
            print(f"{run.path} holds this run, finished")
            return dict(json.loads(run.metrics.read_text(encoding="utf-8")))
        return _train(run, prepared, arguments, part, rows)


class _Read(NamedTuple):
    """By part, the rows with their histories, the vectors of their users and of their items, and their prompts; None
    for vectors that are those of the tables. Those of items are of train: without what each row says of its own."""

    rows: dict[str, pd.DataFrame]
    users: dict[str, Tensor | None]
    items: dict[str, Tensor | None]
    prompts: dict[str, PromptDataset]

    @classmethod
    def of(
        cls, prepared: Prepared, run: RunFolder, embeddings: CollaborativeEmbeddings, rows: dict[str, pd.DataFrame]
    ) -> "_Read":
        directions = directions_of(run, embeddings)
        rows = {name: prepared.with_histories(frame, directions) for name, frame in rows.items()}
        users = {name: prepared.user_vectors(embeddings, frame, name) for name, frame in rows.items()}
        items = {name: prepared.item_vectors(embeddings, rows[name]) if name == "train" else None for name in rows}
        prompts = {name: prepared.prompts(frame, users[name], items[name]) for name, frame in rows.items()}
        return cls(rows, users, items, prompts)

    def levels(self, embeddings: CollaborativeEmbeddings, part: str) -> dict[str, Any]:
        """What AUC the vectors alone have on a part: name → AUC."""
        alone = unscored(self.rows[part])
        alone = collaborative_scores(embeddings, alone, self.users[part], self.items[part])
        return {name: one["auc"] for name, one in summary(alone)["methods"].items()}


def _train(
    run: RunFolder, prepared: Prepared, arguments: TrainingArguments, part: str, rows: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    config = prepared.config
    method = load_method(config.method)
    embeddings = collaborative_vectors(prepared, run)
    torch.manual_seed(config.seed)
    base = load_base(config.model, dtype=chosen_dtype(config.dtype, arguments.device))
    write_title_vectors(run, prepared, base)
    embeddings = with_guesses(run, prepared, base, embeddings)
    model: MethodModel = method.Model(base, prepared.method_config, embeddings).to(arguments.device)
    print(model.patch)
    read = _Read.of(prepared, run, embeddings, rows)
    found = _earlier_predictions(run, rows[part])
    found = collaborative_scores(embeddings, found, read.users[part])
    if "llm" not in found:
        print(f"{len(found)} {part} rows scored by the language model alone")
        found["llm"] = score_together(model, read.prompts[part], adapted=False)
        run.write(run.predictions, found)
    history = fit(config, run, arguments, model, read.prompts)
    start = "the vectors alone" if model.ranks_from_the_start else "the LLM alone"
    watched = model.watched(samples_of(read.prompts["valid"]))
    if is_main():
        training_picture(history, config.method, start, read.levels(embeddings, "valid"), run.picture)
        if said := collapse(watched):
            print(said)
        if weights := weights_of_users(model, samples_of(read.prompts[part])):
            gates_picture(weights, run.gates)
    print(f"{len(found)} {part} rows scored by {method.label}")
    found[config.method] = score_together(model, read.prompts[part])
    run.write(run.predictions, found)
    trained = {"collaborative": len(prepared.splits_of_vectors.train), config.method: len(rows["train"])}
    result = {"part": part} | summary(found) | {"valid_auc": _best(history), "steps": history[-1]["step"]}
    result |= {"training_rows": trained} | ({"watched": watched} if watched else {})
    # Above what they reach on later rows, the vectors have memorised labels that the method learns to read off them.
    result["vectors_on_training_rows"] = read.levels(embeddings, "train")
    run.write(run.metrics, json.dumps(result, indent=2) + "\n")
    wait_for_all()
    return result


def _rows(prepared: Prepared, processes: int) -> tuple[str, dict[str, pd.DataFrame]]:
    """The part that is reported on, and the rows used of every part by so many processes."""
    config = prepared.config
    wanted = {"valid": config.valid_rows, "test": config.test_rows}
    rows = {
        name: rows_of_training(prepared, processes) if name == "train" else prepared.drawn(name, wanted[name])
        for name in prepared.splits.parts()
    }
    if rows["valid"]["label"].nunique() < 2:
        raise ValueError(f"valid_rows: the {len(rows['valid'])} rows drawn have one label only, an AUC needs both")
    return "test" if "test" in rows else "valid", rows


def _earlier_predictions(run: RunFolder, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the scores that an earlier, stopped call has written."""
    return pd.read_parquet(run.predictions) if run.predictions.is_file() else unscored(rows)


def _best(history: list[dict[str, Any]]) -> float | None:
    return max((entry["eval_auc"] for entry in history if "eval_auc" in entry), default=None)
