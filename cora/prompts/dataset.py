"""The prompts of a frame as tokens."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from cora.prompts.encoding import PromptEncoder
from cora.prompts.template import PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000


class PromptDataset(Dataset[dict[str, Any]]):
    """The prompts of a frame, tokenised: item i is row i, {input_ids: list of int, user_id, item_id, label, length}
    and, where user_vectors or item_vectors [rows, d] are given, user_vector or item_vector [d]; where prompts are
    split, prefix_length.

    frame: user_id, item_id, label, history (from `add_histories`), and maybe history_order, the places of a history in
    the order in which its titles are to be kept; titles: item_id → title.
    Tokens are those of `PromptEncoder`: a prompt longer than `max_length` loses the last titles of that order, the
    oldest where there is none, and, if that is not enough, the end of the title asked about; how many did is warned of,
    in one line. Tokenised at once, in batches,
    and kept as int32. split: whether the text up to the title asked about is tokenised on its own, so that prompts of
    one history begin with the same prefix_length tokens.

    Raises ValueError for a missing column, no rows, an item without title, and a max_length below the bare template's.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        titles: Mapping[Any, str],
        tokenizer: "PreTrainedTokenizerBase",
        template: PromptTemplate | None = None,
        max_length: int = 512,
        user_vectors: Tensor | None = None,
        split: bool = False,
        item_vectors: Tensor | None = None,
    ) -> None:
        missing = [column for column in ("user_id", "item_id", "label", "history") if column not in frame]
        if missing:
            raise ValueError(f"frame: missing column {', '.join(missing)}; found {list(frame)}")
        if frame.empty:
            raise ValueError("frame: no rows")
        self.template = template or PromptTemplate()
        self.max_length = max_length
        self.tokenizer = tokenizer
        self.user_ids = frame["user_id"].tolist()
        self.item_ids = frame["item_id"].tolist()
        self._labels = frame["label"].tolist()
        given = {"user_vector": user_vectors, "item_vector": item_vectors}
        self._vectors = {name: one for name, one in given.items() if one is not None}
        used = {item for history in frame["history"] for item in history} | set(self.item_ids)
        untitled = [item for item in used if item not in titles]
        if untitled:
            raise ValueError(f"titles: {len(untitled)} items of the frame have no title, for example {untitled[:3]}")
        histories = [[titles[item] for item in history] for history in frame["history"]]
        encoder = PromptEncoder(tokenizer, self.template, max_length, split)
        self._tokens, self._offsets, self.prefix_lengths = _tokenise(
            encoder,
            histories,
            [titles[item] for item in self.item_ids],
            frame["history_order"].tolist() if "history_order" in frame else None,
        )
        if encoder.shortened:
            first = "oldest" if "history_order" not in frame else "least similar"
            warnings.warn(
                f"{encoder.shortened} of {len(frame)} prompts were longer than max_length, {max_length} tokens: their "
                f"{first} titles are left out, and of {encoder.cut} the end of the title asked about",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self._tokens[self._offsets[index] : self._offsets[index + 1]].tolist()
        row = {
            "input_ids": tokens,
            "user_id": self.user_ids[index],
            "item_id": self.item_ids[index],
            "label": self._labels[index],
            "length": len(tokens),
        }
        if self.prefix_lengths is not None:
            row["prefix_length"] = int(self.prefix_lengths[index])
        return row | {name: one[index] for name, one in self._vectors.items()}

    @property
    def user_vectors(self) -> Tensor | None:
        """[rows, d], those that were given."""
        return self._vectors.get("user_vector")

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every prompt, int64 [rows]."""
        return np.diff(self._offsets)


def _tokenise(
    encoder: PromptEncoder, histories: list[list[str]], names: list[str], orders: list[list[int]] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """All tokens in one row, where each prompt starts in it, and the tokens of each prefix where prompts are split."""
    chunks: list[np.ndarray] = []
    lengths: list[int] = []
    prefixes: list[int | None] = []
    with tqdm(total=len(names), desc="prompts", delay=2) as bar:
        for start in range(0, len(names), _CHUNK):
            some = slice(start, start + _CHUNK)
            encoded = encoder.encode(histories[some], names[some], None if orders is None else orders[some])
            chunks.append(np.concatenate([np.asarray(one.tokens, dtype=np.int32) for one in encoded]))
            lengths += [len(one.tokens) for one in encoded]
            prefixes += [one.prefix for one in encoded]
            bar.update(len(encoded))
    split = None not in prefixes
    return np.concatenate(chunks), np.concatenate([[0], np.cumsum(lengths)]), np.asarray(prefixes) if split else None
