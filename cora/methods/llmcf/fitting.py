"""The fit of LLM-CF: all training rows, stopped by the AUC of all validation rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from cora.collaborative.fitting import Recipe, epochs
from cora.data import Interactions, Splits
from cora.data.thoughts import Thoughts
from cora.methods.llmcf.config import LLMCFConfig
from cora.methods.llmcf.model import LLMCFModel, Told
from cora.methods.llmcf.rows import Catalogue

_KEY = ["user_id", "item_id", "timestamp"]


def fit(
    splits: Splits, data: Interactions, config: LLMCFConfig, seed: int
) -> tuple[LLMCFModel, list[dict[str, float]]]:
    """minimise BCE(logit, label) + text_weight · L_cot by Adam over all rows of train; the state of the best AUC on all
    rows of valid is kept. Returns the model and, of every epoch, its last step, the mean loss of its batches, and
    AUC and log-loss on valid, as the Trainer's log names them.

    With a teacher the first term is (1 - w) · BCE(logit, label) + w · BCE(logit, σ(teacher's logit / temperature)) for
    the rows that the teacher has scored. Deterministic given the seed; the global random state is left as it was.

    Raises ValueError for thoughts of rows that train does not have, without the kind of text asked for, and for a
    teacher's file that does not fit; FileNotFoundError where there is none.
    """
    thoughts = None if config.thoughts is None else _thoughts(config, splits)
    targets = torch.from_numpy(splits.train["label"].to_numpy(np.float32))
    taught = None if config.teacher is None else teacher_targets(config, splits.train)
    texts = None if thoughts is None else (thoughts.item_ids, thoughts.items)
    catalogue = Catalogue.of(splits.train, data.titles, data.genres, texts)
    parts = {
        name: (catalogue.rows(frame, splits, config.max_history), frame["timestamp"].to_numpy())
        for name, frame in (("train", splits.train), ("valid", splits.valid))
    }
    told = Told.none(catalogue, config.max_history)
    if thoughts is not None and config.feature != "none":
        told = _told(thoughts, catalogue, splits, config)
    labels = splits.valid["label"].to_numpy()
    history: list[dict[str, float]] = []
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]):  # initial weights and dropout draw from the global state
        torch.manual_seed(seed)
        model = LLMCFModel(config, catalogue, told)
        (rows, times), (valid_rows, valid_times) = parts["train"], parts["valid"]
        retrieved, valid_retrieved = model.retrieve(rows, times), model.retrieve(valid_rows, valid_times)

        def loss(batch: Tensor) -> Tensor:
            logits, of_texts = model.train()(rows.of(batch), retrieved.of(batch))
            found = functional.binary_cross_entropy_with_logits(logits, targets[batch])
            if taught is not None:
                found = found + config.teacher_weight * distilled(logits, targets[batch], taught[batch])
            found = found + config.text_weight * of_texts
            losses.append(found.item())
            return found

        def valid_auc(_: Any) -> float:
            scores = model.scores(valid_rows, valid_retrieved).double()
            if not (scores.isfinite().all() and np.isfinite(losses).all()):
                raise ValueError(
                    f"training diverged in epoch {len(history) + 1}: a loss or a score is not finite; try a tenth of "
                    f"the learning_rate, {config.learning_rate:g}, in another folder"
                )
            auc = float(roc_auc_score(labels, scores.numpy()))
            eval_loss = functional.binary_cross_entropy_with_logits(scores, torch.tensor(labels, dtype=torch.float64))
            step = len(losses) * (len(history) + 1)
            history.append(
                {"step": step, "loss": float(np.mean(losses)), "eval_auc": auc, "eval_loss": float(eval_loss)}
            )
            losses.clear()
            return auc

        state, _, _ = epochs(
            "llmcf",
            model.parameters(),
            lambda: torch.randperm(len(targets)).split(config.batch_size),
            loss,
            lambda: {name: one.detach().clone() for name, one in model.named_parameters()},
            valid_auc,
            Recipe(config.learning_rate, config.weight_decay, config.batch_size, config.epochs, config.patience),
        )
    model.load_state_dict(state, strict=False)
    return model.eval(), history


def distilled(logits: Tensor, labels: Tensor, taught: Tensor) -> Tensor:
    """mean of BCE(logit, q) - BCE(logit, label) over the rows whose teacher's probability q [B] is there; NaN for none.

    Added w times to the loss against labels, it makes of that (1 - w) against the label and w against the teacher.
    """
    there = ~taught.isnan()
    loss = functional.binary_cross_entropy_with_logits
    terms = loss(logits, taught.nan_to_num(), reduction="none") - loss(logits, labels, reduction="none")
    return (terms * there).sum() / len(terms)


def teacher_targets(config: LLMCFConfig, train: pd.DataFrame) -> Tensor:
    """q = σ(logit / temperature) fp32 [rows of train] of the file of a teacher's scores, NaN for rows that it has not:
    of a language model that is its softmax over yes and no, taken once."""
    path = Path(str(config.teacher))
    if not path.is_file():
        raise FileNotFoundError(f"teacher: there is no file {path}")
    try:
        found = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"teacher: {path} is not a parquet file ({str(error)[:80]})") from None
    if missing := [name for name in (*_KEY, config.teacher_column) if name not in found]:
        raise ValueError(f"teacher: {path} has no column {', '.join(missing)}; found {list(found)}")
    scores = found.drop_duplicates(_KEY).set_index(_KEY)[config.teacher_column]
    logits = scores.reindex(pd.MultiIndex.from_frame(train[_KEY])).to_numpy(np.float64)
    if np.isnan(logits).all():
        raise ValueError(f"teacher: {path} has scored none of the {len(train)} training rows")
    if np.isinf(logits).any():
        raise ValueError(f"teacher: {path} holds scores that are not finite")
    return torch.from_numpy(0.5 + 0.5 * np.tanh(0.5 * logits / config.teacher_temperature)).float()


def _thoughts(config: LLMCFConfig, splits: Splits) -> Thoughts:
    """The thoughts, all of rows that train has with their labels: those of another split may be of test rows."""
    thoughts = Thoughts.load(str(config.thoughts))
    key = [*_KEY, "label"]
    known = pd.MultiIndex.from_frame(thoughts.rows[key]).isin(pd.MultiIndex.from_frame(splits.train[key]))
    if not known.all():
        raise ValueError(
            f"thoughts: {int((~known).sum())} of {len(known)} rows in {config.thoughts} are not among the training "
            "rows; write them for the same data and split"
        )
    kind = _kind(config)
    if kind is not None and kind not in thoughts.vectors:
        raise ValueError(f"cot: {config.thoughts} has no texts of the kind {kind}, only {', '.join(thoughts.vectors)}")
    return thoughts


def _kind(config: LLMCFConfig) -> str | None:
    """The texts that are read, None for none."""
    if config.feature != "ict" or config.cot == "none":
        return None
    return "llm" if config.cot == "shuffled" else config.cot


def _told(thoughts: Thoughts, catalogue: Catalogue, splits: Splits, config: LLMCFConfig) -> Told:
    rows = thoughts.rows
    kind = _kind(config)
    texts = None if kind is None else thoughts.vectors[kind]
    if texts is not None and config.cot == "shuffled":
        texts = texts[torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))]
    times, labels = (torch.tensor(rows[name].to_numpy(np.int64)) for name in ("timestamp", "label"))
    return Told(catalogue.rows(rows, splits, config.max_history), times, labels, texts)
