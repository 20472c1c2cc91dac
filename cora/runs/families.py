"""Training rows in families: rows of one user, close in time, whose prompts share their beginning."""

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments

from cora.llm.batches import token_batches
from cora.prompts import PromptDataset
from cora.runs.prepare import Prepared
from cora.runs.settings import RunConfig

_DAY = 86_400


def rows_of_training(prepared: Prepared, processes: int = 1) -> pd.DataFrame:
    """The training rows that a run draws: about as many as its steps take with so many processes, of those that the
    vectors leave to the language model, and of these no more than `llm_share`.

    Where prompts are split, whole families are drawn, and every row has the time, and so the history, of the first of
    its family: what came between them is not seen, and nothing of the future is.
    """
    config, train = prepared.config, prepared.rows_of_model
    settings = prepared.method_config
    wanted = config.steps * config.batch_size * processes
    if not settings.splits_prompts:
        return config.sampled(train, min(wanted, _share(config, len(train))))
    family = families(train, prepared.data.frame, settings.family_size)
    count = int(family.max()) + 1
    drawn = np.random.default_rng(config.seed).permutation(count)[: min(wanted, _share(config, count))]
    chosen = np.isin(family, drawn)
    return as_of_first(train[chosen], family[chosen])


def _share(config: RunConfig, count: int) -> int:
    """So many of `count` rows or families the language model may be trained on, one at least."""
    return max(1, round(config.llm_share * count))


def families(rows: pd.DataFrame, known: pd.DataFrame, most: int) -> np.ndarray:
    """The number of each row's family, int64 [rows], counted from 0: up to `most` rows of one user and day (UTC) that
    follow one another in time.

    A row whose item its user has another row of in `known` is alone: its history leaves that item out.
    """
    users = pd.factorize(rows["user_id"])[0]
    days = rows["timestamp"].to_numpy() // _DAY
    alone = _rated_again(rows, known)
    # Rows that are alone behind the others of their day, so that these stay together.
    order = np.lexsort((rows["timestamp"].to_numpy(), alone, days, users))
    users, days, alone = users[order], days[order], alone[order]
    starts = np.append(True, (np.diff(users) != 0) | (np.diff(days) != 0) | alone[1:])[: len(rows)]
    places = np.arange(len(rows))
    first = np.maximum.accumulate(np.where(starts, places, 0))
    found = np.empty(len(rows), dtype=np.int64)
    found[order] = np.cumsum((places - first) % most == 0) - 1
    return found


def _rated_again(rows: pd.DataFrame, known: pd.DataFrame) -> np.ndarray:
    """Whether the user of each row has more than one row of its item in `known`, bool [rows]."""
    (users, user_ids), (items, item_ids) = (pd.factorize(known[name]) for name in ("user_id", "item_id"))
    # Two codes in one number: of millions of rows an index of pairs would take a hundred bytes each.
    pairs = np.sort(users * np.int64(len(item_ids)) + items)
    again = np.unique(pairs[1:][pairs[1:] == pairs[:-1]])
    if not len(again):
        return np.zeros(len(rows), dtype=bool)
    own = pd.Index(user_ids).get_indexer(rows["user_id"]) * np.int64(len(item_ids))
    return np.isin(own + pd.Index(item_ids).get_indexer(rows["item_id"]), again)


def as_of_first(rows: pd.DataFrame, family: np.ndarray) -> pd.DataFrame:
    """The rows with the timestamp of the earliest row of their families, and so with its past."""
    order = np.argsort(rows["timestamp"].to_numpy(), kind="stable")
    _, firsts, inverse = np.unique(family[order], return_index=True, return_inverse=True)
    first = np.empty(len(rows), dtype=np.int64)
    first[order] = order[firsts[inverse]]
    return rows.assign(timestamp=rows["timestamp"].to_numpy()[first])


def families_of_prompts(prompts: PromptDataset) -> list[list[int]]:
    """The rows of split prompts of one user that begin with the same tokens and have the same vector."""
    found: dict[tuple[object, ...], list[int]] = {}
    for row in range(len(prompts)):
        one = prompts[row]
        vector = one.get("user_vector")
        prefix = tuple(one["input_ids"][: one["prefix_length"]])
        key = one["user_id"], prefix, None if vector is None else tuple(vector.tolist())
        found.setdefault(key, []).append(row)
    return list(found.values())


class FamilyBatches(Dataset[list[dict[str, object]]]):
    """The prompts in the order of training, over all epochs: an item is a batch, whole families up to as many tokens as
    `batch_size` prompts of the mean length have. shared: whether prompts of a family hold their beginning once, and so
    count it once.

    Made at once from the seed, as for prompts that share nothing: a resumed run has the same order.
    """

    def __init__(self, prompts: PromptDataset, config: RunConfig, arguments: TrainingArguments, shared: bool) -> None:
        assert prompts.prefix_lengths is not None
        self.prompts = prompts
        most = config.method_config().family_size
        whole = families_of_prompts(prompts)
        parts = [family[start : start + most] for family in whole for start in range(0, len(family), most)]
        lengths = prompts.lengths.tolist()
        prefix = prompts.prefix_lengths.tolist() if shared else [0] * len(lengths)
        tokens = config.batch_size * -(-sum(lengths) // len(lengths))
        steps = arguments.max_steps * arguments.gradient_accumulation_steps * arguments.world_size
        generator = torch.Generator().manual_seed(arguments.seed)
        order: list[list[int]] = []
        self.batches: list[list[int]] = []
        # The last batch is full only if another epoch follows.
        while len(self.batches) <= steps:
            order += [parts[one] for one in torch.randperm(len(parts), generator=generator).tolist()]
            self.batches = token_batches(order, prefix, lengths, tokens)
        self.batches = self.batches[:steps]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[dict[str, object]]:
        return [self.prompts[row] for row in self.batches[index]]
