"""Items without a training row: drawn and taken away, so that what is known of them is their text alone."""

import numpy as np

from cora.data.splits import Splits


def with_cold_items(splits: Splits, share: float, seed: int = 0) -> Splits:
    """The splits without any training row of a share of train's items, drawn by the seed.

    An item so drawn is as one that came out after training: its rows in train are gone, from every user's past too.
    Half of the drawn items then have their rows in valid alone, the others in test alone (or in none, where there is no
    test part): what is chosen by the validation rows has not seen the cold items of the test. Valid and test are
    otherwise as they were.

    All parts get a column `cold_item`, bool: whether the row's item has no training row, drawn or not.
    Raises ValueError for a share that is not above 0 and below 1, that draws fewer than two items, or leaves no rows.
    """
    if not 0 < share < 1:
        raise ValueError(f"cold_share: expected a number above 0 and below 1, got {share!r}")
    items = np.sort(splits.train["item_id"].unique())
    drawn = np.random.default_rng(seed).permutation(items)[: round(share * len(items))]
    if len(drawn) < 2:
        raise ValueError(f"cold_share: expected 2 items at least, for valid and for test, got {share} of {len(items)}")
    dropped = {"train": drawn, "valid": drawn[1::2], "test": drawn[::2]}
    parts = {
        name: frame[~frame["item_id"].isin(dropped[name])].reset_index(drop=True)
        for name, frame in splits.parts().items()
    }
    if empty := [name for name, frame in parts.items() if frame.empty]:
        raise ValueError(f"cold_share: {share} of the items, {len(drawn)}, leaves {', '.join(empty)} empty")
    known = parts["train"]["item_id"].unique()
    marked = {name: frame.assign(cold_item=~frame["item_id"].isin(known)) for name, frame in parts.items()}
    return Splits(marked["train"], marked["valid"], marked.get("test"))
