"""How the methods that need no language model rank the items that came next, on the rows that a run ranks."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from cora.runs.folder import RunFolder
from cora.runs.next_items import NextItems, in_parts
from cora.sequences import BASELINES, READERS, Ranking
from cora.sequences.baselines import Scores
from cora.sequences.neural import trained
from cora.sequences.ranking import ranks_by_score

# What becomes of items that a user has had: whether they can be given again.
KINDS = {"removed": False, "kept": True}
_LARGEST = 10_000  # items of which a matrix of each pair is made, and a score of each at every step of a training
_VALID_ROWS = 1024  # that a network's best epoch is known by

Ranks = dict[str, dict[str, np.ndarray]]


def baseline_ranks(run: RunFolder, prepared: NextItems, events: np.ndarray) -> Ranks:
    """{"removed" or "kept": {name: ranks int64 [n]}} of popularity, item cosine, Markov, EASE, GRU4Rec and SASRec, by
    the training rows; made once, and kept in the run's baselines.parquet.

    The networks keep their best epoch by NDCG@10 of validation rows without seen items.
    """
    if run.baselines.is_file():
        table = pd.read_parquet(run.baselines)
        names = list(dict.fromkeys(column.rpartition(", seen ")[0] for column in table))
        return {kind: {name: table[f"{name}, seen {kind}"].to_numpy() for name in names} for kind in KINDS}
    items = len(prepared.sequences.item_ids)
    found: Ranks = {kind: {} for kind in KINDS}
    for name, make in _makers(prepared).items():
        if items > _LARGEST and name != "popularity":
            print(f"{name} is left out: {items:,} items are too many for it (from {_LARGEST + 1:,})")
            continue
        for kind, ranks in zip(KINDS, _ranks(prepared, make(), events, list(KINDS.values())), strict=True):
            found[kind][name] = ranks
    columns = {f"{name}, seen {kind}": ranks for kind, of in found.items() for name, ranks in of.items()}
    run.write(run.baselines, pd.DataFrame(columns))
    return found


def _makers(prepared: NextItems) -> dict[str, Callable[[], Scores]]:
    sequences, seed = prepared.sequences, prepared.config.seed
    training, items = sequences.training(), len(sequences.item_ids)
    valid = prepared.targets("valid", _VALID_ROWS)

    def validate(scores: Scores) -> float:
        (ranks,) = _ranks(prepared, scores, valid, [False])
        return float(Ranking(ranks, sequences.user[valid]).values("ndcg", 10).mean())

    made: dict[str, Callable[[], Scores]] = {name: partial(make, training, items) for name, make in BASELINES.items()}
    return made | {name: partial(trained, name, training, items, validate, seed) for name in READERS}


def _ranks(prepared: NextItems, scores: Scores, events: np.ndarray, kept: list[bool]) -> list[np.ndarray]:
    """int64 [n]: the rank of what came at each event among all items by scores of the user's history; one for each of
    `kept`, whether items that the user has had by then can be given again."""
    sequences = prepared.sequences
    found = []
    for part in in_parts(events):
        of_part, seen = scores([sequences.history(event) for event in part]), sequences.seen(part)
        found.append([ranks_by_score(of_part, sequences.item[part], None if one else seen) for one in kept])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]
