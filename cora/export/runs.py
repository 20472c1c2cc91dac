"""What a finished run is for users and items, as PEFT adapters."""

import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cora.collaborative import CollaborativeEmbeddings
from cora.export.adapter import Adapter, Factors, save_adapter
from cora.files import write_files
from cora.llm.deltas import Delta
from cora.methods import load_method
from cora.methods.model import MethodModel
from cora.methods.samples import Samples
from cora.runs.folder import RunFolder
from cora.runs.prepare import prepare, refuse_other_tasks
from cora.runs.recommend import as_id
from cora.runs.score import load_model


def export(run: str | Path, users: Sequence[str], items: Sequence[str], out: str | Path) -> list[Path]:
    """Writes the deltas of every pair of these users and items, or of users alone, as adapters; returns their folders.

    users, items: ids as text. Without items the item is the mean of all. A user's vector is the one that the run would
    score the pair by: of all that they rated but this item, where it folds in. One pair is written to `out` itself,
    several to folders in it, user-U-item-I or user-U, with what a file name cannot hold in ids as %XX.

    Raises FileNotFoundError unless a finished run is there; ValueError for ids that the run has no vector for, for an
    id named twice, for an `out` that is a file, and for a run that is more than an adapter: with shared_prefix, or
    with vectors between the tokens.
    """
    folder, out = RunFolder.existing(run), Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: expected a folder, {out} is a file")
    config = folder.config()
    if load_method(config.method).fit is not None:
        raise ValueError(f"run: {config.method} has no adapters; without a user the model itself is exported")
    refuse_other_tasks(config)
    if config.method_config().splits_prompts:
        raise ValueError("run: with shared_prefix a prompt has two adapters, which no one adapter can stand for")
    if load_method(config.method).Model.embedded is not MethodModel.embedded:
        raise ValueError(f"run: {config.method} puts vectors between the tokens of a prompt, which no adapter can hold")
    prepared, embeddings = prepare(config), folder.vectors()
    frame = prepared.data.frame
    # Where users are folded in the data knows them, else the table does.
    known = set(frame["user_id"]) if config.encodes_users(embeddings) else set(embeddings.user_ids)
    chosen = _checked("user", users, frame["user_id"], known)
    about = _checked("item", items, frame["item_id"], set(embeddings.item_ids))
    pairs = list(product(chosen, about or [_mean_item(embeddings)]))
    folders = [out / _folder_name(user, item if about else None) for user, item in pairs] if len(pairs) > 1 else [out]
    now = pd.DataFrame(pairs, columns=["user_id", "item_id"]).assign(timestamp=np.iinfo(np.int64).max)
    vectors = prepared.user_vectors(embeddings, now)
    model = load_model(folder, config)
    if model.readout is not None:
        warnings.warn(
            "an adapter holds the language model alone; the score of this run reads its last hidden state by a vector "
            "of the run and adds the collaborative logit",
            stacklevel=2,
        )
    for row, ((user, item), path) in enumerate(zip(pairs, folders, strict=True)):
        sample = Samples([user], [item], None if vectors is None else vectors[row : row + 1])
        save_adapter(path, _adapter(model, sample), model.base)
    return folders


def export_scorer(run: str | Path, out: str | Path) -> Path:
    """Writes the model of a run whose method scores without a language model as a program of torch.export.

    Raises FileNotFoundError unless a finished run is there; ValueError for a run of another method and for an `out`
    that is no file NAME.pt2.
    """
    folder, out = RunFolder.existing(run), Path(out)
    config = folder.config()
    if load_method(config.method).fit is None:
        raise ValueError(f"user: needed, a run of {config.method} is exported as adapters of users and items")
    if out.suffix != ".pt2" or out.is_dir():
        raise ValueError(f"out: expected a file NAME.pt2, got {str(out)!r:.80}")
    program = load_model(folder, config).exported()
    write_files(out.parent, {out.name: lambda path: _save_program(program, path)})
    return out


def _save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(program, file)


def _adapter(model: MethodModel, sample: Samples) -> Adapter:
    with torch.no_grad(), warnings.catch_warnings():
        # An item that nobody has stands for the mean, which embeddings warn of.
        warnings.simplefilter("ignore")
        deltas = model.deltas(sample)
    factors = {name: _of_first_sample(delta) for name, delta in deltas.items()}
    return Adapter(factors, model.base.config.name_or_path or None)


def _of_first_sample(delta: Delta) -> Factors:
    lora_a, lora_b = (matrix[0] if matrix.dim() == 3 else matrix for matrix in delta[:2])
    scaling = delta.scaling
    return Factors(lora_a, lora_b, float(scaling[0] if isinstance(scaling, Tensor) else scaling))


def _checked(field: str, texts: Sequence[str], column: pd.Series, known: set[Any]) -> list[Any]:
    ids = [as_id(field, text, column) for text in texts]
    if unknown := [one for one in ids if one not in known]:
        raise ValueError(f"{field}: the run knows no {field} {str(unknown[0])[:80]!r}; it knows {len(known)}")
    if repeated := [one for one in ids if ids.count(one) > 1]:
        raise ValueError(f"{field}: {str(repeated[0])[:80]!r} is named twice")
    return ids


def _mean_item(embeddings: CollaborativeEmbeddings) -> Any:
    """An id that no item has: the vectors of unknown ids are the mean."""
    ids = embeddings.item_ids
    return max(ids, key=len) + "?" if isinstance(ids[0], str) else max(ids) + 1


def _folder_name(user: Any, item: Any) -> str:
    name = f"user-{quote(str(user), safe='')}"
    return name if item is None else f"{name}-item-{quote(str(item), safe='')}"
