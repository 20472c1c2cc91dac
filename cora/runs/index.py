"""`cora index`: the items of a data set as codes, in a folder."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cora.checks import check_choice
from cora.codes import ItemCodes, Recipe, train_rqvae, unique_codes
from cora.codes.assign import random_codes
from cora.codes.report import as_text, picture, report
from cora.codes.vectors import VECTORS, collaborative_vectors, side_by_side, standardised, text_vectors
from cora.data import load_interactions
from cora.llm.loading import chosen_dtype, load_base, load_tokenizer
from cora.runs.prepare import PreparedData
from cora.runs.settings import RunConfig

_SHOWN = 5  # items whose neighbours are printed, those with most rows in train


def index(settings: dict[str, Any], vectors: str, recipe: dict[str, Any], out: str | Path) -> ItemCodes:
    """`index_items` of the data that settings of a run name. settings: fields of RunConfig, of which `data` is needed
    and, for vectors "text" and "both", `model`; recipe: fields of Recipe.

    Raises what `index_items` and reading the data raise, and ValueError for other names.
    """
    if vectors in ("text", "both") and not settings.get("model"):
        raise ValueError(f"model: expected the name of a language model, which reads the titles, for vectors {vectors}")
    config = RunConfig.from_dict({**settings, "model": settings.get("model") or "none"})
    of_codes = Recipe.from_dict(recipe)
    return index_items(PreparedData(config, load_interactions(config.data)), vectors, of_codes, out)


def index_items(data: PreparedData, vectors: str, recipe: Recipe, out: str | Path) -> ItemCodes:
    """Codes of every item that has a row in the data, written to the folder `out` with a picture; prints a report.

    vectors: what the codes are made of: "text", the mean hidden state of the language model of the run over an item's
    title; "collaborative", factors of who did something with which item in the training rows; "both" side by side; or
    "random", different codes that tell nothing, to compare with. Deterministic given the seed of the run.

    Raises ValueError for another `vectors` and for codes that cannot tell the items apart, FileExistsError for a folder
    that holds other things, before anything is computed.
    """
    check_choice("vectors", vectors, VECTORS)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out: {out} exists and is no empty folder")
    frame = data.data.frame
    items = sorted(frame["item_id"].unique().tolist())
    size = recipe.codes_for(len(items))
    titles = [data.data.titles[item] for item in items]
    seed = data.config.seed
    about: dict[str, Any] = {"data": data.data.name, "vectors": vectors, "seed": seed}
    if vectors == "random":
        nearest = codes = random_codes(len(items), recipe.levels, size, seed)
    else:
        made = _vectors(data, vectors, items, titles)
        model, losses = train_rqvae(made, recipe, seed)
        with torch.no_grad():
            z = model.encoder(made)
            nearest = model.quantiser(z).codes
            codes = unique_codes(z, model.quantiser.codebooks)
        about |= {"steps": recipe.steps, "loss": losses[-1] if losses else None}
        about |= {"model": data.config.model} if vectors in ("text", "both") else {}
        about |= {"split": split_of(data.config)} if vectors in ("collaborative", "both") else {}
    found = ItemCodes(items, codes, size, about)
    told = report(nearest, found)
    found.about["report"] = told
    often = frame["item_id"].value_counts(sort=False).sort_index().sort_values(ascending=False, kind="stable")
    print(as_text(told, found, titles, found.rows(often.index[:_SHOWN]).tolist()))
    picture(found, out / "codes.png")
    found.save(out)
    return found


def split_of(config: RunConfig) -> str:
    """In words, by which split codes have seen training rows alone."""
    told = {"leave-last": str(config.leave_last), "dates": f"{config.valid_from} {config.test_from}"}
    cold = f", cold share {config.share_of_cold_items} of seed {config.seed}" if config.share_of_cold_items else ""
    return f"{config.split} {told.get(config.split, '')}".strip() + cold


def _vectors(data: PreparedData, kind: str, items: list[Any], titles: list[str]) -> Tensor:
    parts = []
    if kind in ("text", "both"):
        name = data.config.model
        base = load_base(name, dtype=chosen_dtype(data.config.dtype, torch.device("cpu"))).eval()
        parts.append(standardised(text_vectors(base, load_tokenizer(name), titles)))
    if kind in ("collaborative", "both"):
        parts.append(collaborative_vectors(data.splits.train, items, seed=data.config.seed))
    return side_by_side(*parts)
