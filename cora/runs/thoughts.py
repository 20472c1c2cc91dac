"""Chains of thought for training rows: chosen, written by a language model, made vectors of, kept as they are made."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cora.checks import check_choice, check_int, is_number
from cora.data import pasts
from cora.data.thoughts import KINDS, Thoughts, spread
from cora.llm.loading import chosen_dtype, load_base, load_tokenizer
from cora.llm.writing import centred
from cora.methods import load_method
from cora.prompts.thoughts import Decision, item_text, told_by_counts
from cora.runs.folder import RunFolder
from cora.runs.prepare import PreparedData, prepare_data
from cora.runs.score import load_model
from cora.runs.settings import RunConfig
from cora.runs.writer import Cache, Writer

_HISTORY = 6  # titles in a prompt


def write_thoughts(
    config: RunConfig,
    rows: int,
    out: str | Path,
    kind: str = "llm",
    new_tokens: int = 64,
    candidates: int = 1,
    writer: str | Path | None = None,
    max_minutes: float | None = None,
) -> Thoughts:
    """Writes chains of thought for `rows` training rows, spread evenly over time, to the folder `out`; returns them.

    Texts of the kind "template", told by counts, are made of each row, and with kind "llm" texts by the language model
    of the settings: `candidates` of at most `new_tokens` tokens, the best of which is kept; or by the model of the
    finished run `writer`, adapted to each row's user and item. A text knows what its user rated before its row and the
    row's own label. Vectors of all texts and of all items are made by the language model as it is.

    What is written is kept in the folder by a hash of the model, the prompt and the settings, so that the same command
    goes on where it was stopped, to the same texts. max_minutes: writing ends after this time, and rows that have no
    text by then are left out. Raises FileExistsError for a folder that holds other things or that
    another process writes in, ValueError for rows < 1 or more than there are, and what reading data and model raises.
    """
    check_choice("cot", kind, KINDS)
    if max_minutes is not None and not (is_number(max_minutes) and max_minutes > 0):
        raise ValueError(f"max_minutes: expected a positive number, got {max_minutes!r}")
    for name, value in (("rows", rows), ("new_tokens", new_tokens), ("candidates", candidates)):
        check_int(name, value, at_least=1)
    if writer is not None:
        _check_writer(RunFolder.existing(writer).config(), config.model)
    prepared = prepare_data(config)
    chosen = spread(prepared.splits.train, rows)[["user_id", "item_id", "label", "timestamp"]]
    with Cache(Path(out)) as cache:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        base = load_base(config.model, dtype=chosen_dtype(config.dtype, device)).eval()
        base.to(device)
        made = Writer(base, load_tokenizer(config.model), cache)
        decisions = _decisions(prepared, chosen)
        texts: dict[str, list[Any]] = {"template": _by_counts(prepared, chosen, decisions)}
        if kind == "llm":
            generate = _personal(writer, prepared, chosen) if writer is not None else _impersonal(base)
            ends = float("inf") if max_minutes is None else time.monotonic() + 60 * max_minutes
            written = made.texts(decisions, generate, f"{writer}", new_tokens, candidates, config.seed, ends)
            there = [row for row, text in enumerate(written) if text is not None]
            if not there:
                raise ValueError(f"max_minutes: no text was written in {max_minutes:g} minutes")
            chosen = chosen.iloc[there].reset_index(drop=True)
            texts = {"template": [texts["template"][row] for row in there], "llm": [written[row] for row in there]}
        items = sorted(prepared.data.titles)
        of_items = [item_text(prepared.data.titles[item], prepared.data.genres.get(item, ())) for item in items]
        thoughts = Thoughts(
            chosen.assign(**texts),
            {name: centred(made.vectors(ones)) for name, ones in texts.items()},
            items,
            centred(made.vectors(of_items)),
            {"data": config.data, "model": config.model, "rows": rows, "new_tokens": new_tokens,
             "candidates": candidates, "seed": config.seed, "writer": None if writer is None else str(writer)},
        )  # fmt: skip
        thoughts.save(out)
    return thoughts


def _check_writer(run: RunConfig, model: str) -> None:
    """Raises ValueError for a run that cannot write, or not what the language model of the settings reads."""
    if load_method(run.method).fit is not None:
        raise ValueError(f"run: {run.method} has no language model that could write")
    if run.method_config().splits_prompts:
        raise ValueError("run: with shared_prefix a model does not write, it adapts the parts of a prompt differently")
    if run.model != model:
        raise ValueError(
            f"run: its language model is {run.model!r:.80}, expected {model!r:.80}, which makes the vectors"
        )


def _decisions(prepared: PreparedData, rows: pd.DataFrame) -> list[Decision]:
    titles, genres = prepared.data.titles, prepared.data.genres
    items, labels = pasts(rows, prepared.splits.of_users(rows["user_id"]), _HISTORY)
    return [
        Decision(
            tuple((titles[one], bool(liked)) for one, liked in zip(past.tolist(), likes.tolist(), strict=True)),
            titles[item],
            genres.get(item, ()),
            bool(label),
        )
        for past, likes, item, label in zip(
            items, labels, rows["item_id"].tolist(), rows["label"].tolist(), strict=True
        )
    ]


def _by_counts(prepared: PreparedData, rows: pd.DataFrame, decisions: Sequence[Decision]) -> list[str]:
    """The texts of the kind "template", of what was before each row alone."""
    genres = prepared.data.genres
    items, labels = pasts(rows, prepared.splits.of_users(rows["user_id"]))
    swap = {"user_id": "item_id", "item_id": "user_id"}  # the past of an item: who rated it before, and how
    others = pasts(rows.rename(columns=swap), prepared.splits.train.rename(columns=swap))[1]
    found = []
    for decision, past, liked, said in zip(decisions, items, labels, others, strict=True):
        of_genres = []
        for genre in decision.genres:
            alike = np.array([genre in genres.get(item, ()) for item in past.tolist()], dtype=bool)
            of_genres.append((genre, int(liked[alike].sum()) if len(past) else 0, int(alike.sum())))
        found.append(told_by_counts(decision, of_genres, (int(said.sum()), len(said))))
    return found


def _impersonal(base: Any) -> Callable[..., Tensor]:
    """transformers' generate, which is told of which rows the prompts are."""
    return lambda rows, **kwargs: base.generate(**kwargs)


def _personal(run: str | Path, prepared: PreparedData, rows: pd.DataFrame) -> Callable[..., Tensor]:
    """The same of the model of a finished run, adapted to the user and the item of each row."""
    folder = RunFolder.existing(run)
    model, vectors = load_model(folder, folder.config()), prepared.user_vectors(folder.vectors(), rows)
    users, items = rows["user_id"].tolist(), rows["item_id"].tolist()

    def generate(of: Sequence[int], **kwargs: Any) -> Tensor:
        told: dict[str, Any] = {"user_ids": [users[row] for row in of], "item_ids": [items[row] for row in of]}
        if vectors is not None:
            told["user_vectors"] = vectors[list(of)]
        found: Tensor = model.generate(**kwargs, **told)
        return found

    return generate
