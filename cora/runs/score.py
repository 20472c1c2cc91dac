"""Rows scored: by the collaborative vectors alone, by the language model alone, by a method."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cora.collaborative import CollaborativeEmbeddings
from cora.llm.loading import chosen_dtype
from cora.methods import load_method
from cora.methods.model import MethodModel
from cora.prompts import PromptCollator, PromptDataset
from cora.runs.distributed import gathered, is_main, join_processes, own_share
from cora.runs.folder import RunFolder
from cora.runs.metrics import identified, summary
from cora.runs.new_items import guess_further
from cora.runs.prepare import Prepared, PreparedData, prepare_on, prepare_scored
from cora.runs.settings import RunConfig
from cora.runs.similarity import directions_of


def evaluate(
    run: str | Path, data: str | None = None, part: str = "test", rows: int = 0, out: str | Path | None = None
) -> dict[str, Any]:
    """The metrics, as in metrics.json, of a finished run on a part ("train", "valid", "test") of its own data or of
    other data with the same ids (`prepare_on`). rows: that many drawn at random, 0 for all. out: a parquet file to
    write with the rows and the scores of every method, logits, as in predictions.parquet.

    Several processes divide the rows among them. Raises FileNotFoundError unless a finished run is there, ValueError
    for a part that the data does not have.
    """
    folder = RunFolder.existing(run)
    if rows < 0:
        raise ValueError(f"rows: expected a whole number from 0, got {rows}")
    config = folder.config()
    join_processes()
    prepared = prepare_scored(config) if data is None else prepare_on(config, data)
    found = _evaluated(folder, prepared, prepared.drawn(part, rows).reset_index(drop=True), part)
    if out is not None and is_main():
        folder.write(Path(out), found)
    return {"part": part} | summary(found)


def _evaluated(folder: RunFolder, prepared: PreparedData, chosen: pd.DataFrame, part: str) -> pd.DataFrame:
    """The rows with the scores of every method."""
    config, embeddings = folder.config(), folder.vectors()
    if "cold_item" in chosen and chosen.loc[chosen["cold_item"], "item_id"].isin(embeddings.item_ids).any():
        raise ValueError(
            f"data: items without a training row in {prepared.data.name} have vectors in {folder.path}, "
            "whose train part was another"
        )
    model = load_model(folder, config)
    if isinstance(prepared, Prepared):
        guess_further(embeddings, prepared, model, chosen["item_id"].tolist())
    vectors = prepared.user_vectors(embeddings, chosen, part)
    # The vectors were fitted to the labels of these rows: an item is read as in training, without the row's own rating.
    fitted = part == "train" and prepared.config.data == config.data
    items = prepared.item_vectors(embeddings, chosen) if fitted else None
    found = collaborative_scores(embeddings, unscored(chosen), vectors, items)
    if isinstance(prepared, Prepared):
        prompts = prepared.prompts(prepared.with_histories(chosen, directions_of(folder, embeddings)), vectors, items)
        for name, adapted in (("llm", False), (config.method, True)):
            found[name] = score_together(model, prompts, adapted)
    else:
        found[config.method] = model.score_rows(chosen, prepared.splits)
    return found


def load_model(folder: RunFolder, config: RunConfig) -> Any:
    """The model of a finished run: a MethodModel, on the GPU if there is one; of a method without a language model its
    own, on the CPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method = load_method(config.method)
    made = method.Model
    if method.fit is not None:
        return made.from_pretrained(folder.model)
    model: MethodModel = made.from_pretrained(folder.model, dtype=chosen_dtype(config.dtype, device)).to(device)
    return model


def score_prompts(
    model: MethodModel, prompts: PromptDataset, adapted: bool = True, rows: Sequence[int] | None = None
) -> np.ndarray:
    """The score of every prompt, or of those in `rows`, float32 [rows], by the method or, not `adapted`, by its
    language model alone."""
    chosen = range(len(prompts)) if rows is None else rows
    if not chosen:
        return np.zeros(0, dtype=np.float32)
    batch = PromptCollator(prompts.tokenizer)([prompts[row] for row in chosen])
    ids, mask = (batch[name].to(model.base.device) for name in ("input_ids", "attention_mask"))
    scores = model.score(
        ids,
        mask,
        batch["user_ids"],
        batch["item_ids"],
        adapted=adapted,
        user_vectors=batch.get("user_vectors"),
        prefix_lengths=batch.get("prefix_lengths"),
        item_vectors=batch.get("item_vectors"),
    )
    return np.asarray(scores.cpu())


def score_together(model: MethodModel, prompts: PromptDataset, adapted: bool = True) -> np.ndarray:
    """`score_prompts` of all prompts, in every process; each scores its share of them."""
    return gathered(score_prompts(model, prompts, adapted, own_share(len(prompts))))


def unscored(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with what identifies them alone, for columns of scores beside it."""
    return identified(rows).reset_index(drop=True)


def collaborative_scores(
    embeddings: CollaborativeEmbeddings,
    rows: pd.DataFrame,
    user_vectors: Tensor | None,
    item_vectors: Tensor | None = None,
) -> pd.DataFrame:
    """rows with a column collaborative, <e_u, e_i> of the tables, and fold_in, of user_vectors [rows, d], if given,
    and then item_vectors [rows, d], if given; and titles, the same with what the embeddings guess of unknown items, if
    they guess any."""
    pairs = rows["user_id"].tolist(), rows["item_id"].tolist()
    scored = rows.assign(collaborative=embeddings.score(*pairs).float().numpy())
    if user_vectors is not None:
        scored["fold_in"] = embeddings.score(*pairs, user_vectors, item_vectors).float().numpy()
    if user_vectors is not None and embeddings.guesses is not None:
        known, guessed = embeddings.has_items(pairs[1])[:, None], embeddings.guessed(pairs[1])
        told = torch.where(known, embeddings.vectors(*pairs, user_vectors, item_vectors)[1], guessed)
        scored["titles"] = embeddings.score(*pairs, user_vectors, told).float().numpy()
    return scored
