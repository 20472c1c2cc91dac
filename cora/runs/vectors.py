"""Collaborative vectors: those of a run, and a model by itself, trained, judged and written to a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cora.collaborative import COLLABORATIVE, CollaborativeEmbeddings, FitResult
from cora.data import Splits
from cora.runs.distributed import is_main, wait_for_all
from cora.runs.folder import RunFolder
from cora.runs.metrics import summary
from cora.runs.prepare import PreparedData, prepare_data
from cora.runs.score import collaborative_scores, unscored
from cora.runs.settings import RunConfig


def fit_vectors(config: RunConfig, out: str | Path) -> dict[str, Any]:
    """Trains the collaborative model of the settings and writes its embeddings, with the name and the weights of its
    user encoder, to the safetensors file `out`; returns the metrics, as in metrics.json, of all validation rows.

    "collaborative" of them are users' rows of the table, "fold_in" the vectors of their past. The test rows are not
    read. Raises what reading the data and the model raises; ValueError for an `out` of another kind.
    """
    out = Path(out)
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"out: expected a file NAME.safetensors, got {str(out)!r}")
    if beside := [one for one in out.parents if one.exists() and not one.is_dir()]:
        raise ValueError(f"out: expected a file in a folder, {beside[0]} is none")
    prepared = prepare_data(config)
    splits = prepared.splits
    embeddings, result = _fitted(prepared)
    print(f"{config.collaborative}: {result.best_epoch + 1} epochs of {len(result.valid_aucs)} kept")
    vectors = prepared.user_vectors(embeddings, splits.valid, "valid")
    embeddings.save(out)
    return {"part": "valid"} | summary(collaborative_scores(embeddings, unscored(splits.valid), vectors))


def collaborative_vectors(prepared: PreparedData, run: RunFolder) -> CollaborativeEmbeddings:
    """The vectors of the run: those of the file named, those trained before, or those of a model trained now."""
    config = prepared.config
    if is_main() and not run.embeddings.is_file():
        if config.embeddings is not None:
            # Guesses in a file are of another run, which may have learned them from items that are new in this one.
            given = CollaborativeEmbeddings.load(config.embeddings).with_guesses(None)
            embeddings = _of_trained_items(given, prepared.splits)
        else:
            embeddings, result = _fitted(prepared)
            print(f"{config.collaborative}: valid AUC {result.valid_auc:.4f} after {result.best_epoch + 1} epochs")
        embeddings.save(run.embeddings)
    wait_for_all()
    return run.vectors()


def _fitted(prepared: PreparedData) -> tuple[CollaborativeEmbeddings, FitResult]:
    config, splits = prepared.config, prepared.splits_of_vectors
    return COLLABORATIVE[config.collaborative](splits.train, splits.valid, config.dim, seed=config.seed)


def _of_trained_items(embeddings: CollaborativeEmbeddings, splits: Splits) -> CollaborativeEmbeddings:
    """The vectors without those of cold items, which whoever made them may have known."""
    if "cold_item" not in splits.train:
        return embeddings
    known = pd.Series(embeddings.item_ids, dtype=object).isin(splits.train["item_id"].unique().tolist())
    rows = np.flatnonzero(known)
    if not len(rows):
        raise ValueError("embeddings: none of the items in train has a vector in the file")
    return embeddings.of_items(torch.from_numpy(rows))
