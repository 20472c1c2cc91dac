"""What training, evaluation, scoring and recommendation share: the data of a run, and its rows as prompts."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import pandas as pd
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cora.collaborative import CollaborativeEmbeddings, Directions, items_without_own_rating, most_similar, user_encoder
from cora.data import Interactions, Splits, earliest, load_interactions, pasts, split, with_cold_items, with_histories
from cora.llm.loading import load_tokenizer
from cora.methods import load_method
from cora.methods.config import MethodConfig
from cora.prompts import PromptDataset, PromptEncoder
from cora.runs.settings import RunConfig

# Ratings that a user's vector is folded in from, at most: more than any user of MovieLens-1M has. A user of a million
# would make a batch that does not fit.
_MOST_PAST = 4096
# Of the rows that vectors are trained on where the language model has later ones: the rest stops their training. It is
# earlier too, so that nothing of a vector hangs on a label that the language model learns.
_SHARE_OF_FIT = 0.9


@dataclass(frozen=True)
class PreparedData:
    """The interactions of a run, split, and the collaborative vectors of their rows."""

    config: RunConfig
    data: Interactions

    @cached_property
    def whole_splits(self) -> Splits:
        """The parts with all their rows, whatever the share of cold items."""
        config = self.config
        by = "ratio" if "split" in self.data.frame or config.split == "cold-items" else config.split
        return split(self.data, by, valid_from=config.valid_from, test_from=config.test_from, last=config.leave_last)

    @cached_property
    def splits(self) -> Splits:
        """Train, valid and, where there is one, test, with `warm` for rows of known user and item, and `cold_item`
        where there is a share of cold items."""
        parts, share = self.whole_splits, self.config.share_of_cold_items
        if share:
            parts = with_cold_items(parts, share, self.config.seed)
        users, items = (parts.train[name].unique() for name in ("user_id", "item_id"))
        warm = {
            name: frame.assign(
                warm=True if name == "train" else frame["user_id"].isin(users) & frame["item_id"].isin(items)
            )
            for name, frame in parts.parts().items()
        }
        return Splits(warm["train"], warm["valid"], warm.get("test"))

    @cached_property
    def splits_of_vectors(self) -> Splits:
        """What collaborative vectors are trained on and stopped by, train and valid: those of `splits`, or of train the
        earliest `vectors_share`."""
        if self.config.vectors_share == 1:
            return self.splits
        earlier, _ = self._vectors_and_model
        return Splits(*earliest(earlier, _SHARE_OF_FIT), None)

    @cached_property
    def rows_of_model(self) -> pd.DataFrame:
        """The rows of train that the language model may be trained on: all, or those later than every row that the
        vectors have seen the label of."""
        return self.splits.train if self.config.vectors_share == 1 else self._vectors_and_model[1]

    @cached_property
    def _vectors_and_model(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        try:
            return earliest(self.splits.train, self.config.vectors_share)
        except ValueError as error:
            raise ValueError(f"vectors_share: {str(error).removeprefix('share: ')}") from None

    def user_vectors(
        self, embeddings: CollaborativeEmbeddings, rows: pd.DataFrame, part: str | None = None
    ) -> Tensor | None:
        """e_u [rows, d] of each row's user as of its time, from all interactions, by encoders that read it for the
        row's item; None for the table's.

        part: what the rows are called where how many of them have unknown ids is said, in one line.
        """
        past = None
        if self.config.encodes_users(embeddings):
            known = self.splits.of_users(rows["user_id"])
            # Cold items have no vectors, and their mean would count as if the user had rated that.
            known = known[~known["cold_item"]] if "cold_item" in known else known
            past = pasts(rows, known, _MOST_PAST)
        if part is not None:
            others = [] if past is None else pd.unique(past[0].values).tolist()
            embeddings.report_unknown(part, rows["user_id"].tolist(), rows["item_id"].tolist(), others)
        return None if past is None else user_encoder(embeddings).vectors(*past, rows["item_id"].tolist())

    def item_vectors(self, embeddings: CollaborativeEmbeddings, rows: pd.DataFrame) -> Tensor | None:
        """e_i [rows, d] of training rows, each without what its own row says of it; None for the table's, where users
        are not folded in."""
        if not self.config.encodes_users(embeddings) or embeddings.user_encoder not in (None, "fold-in"):
            return None
        return items_without_own_rating(embeddings, rows, self.splits_of_vectors.train)

    def drawn(self, part: str, rows: int) -> pd.DataFrame:
        """So many rows of a part, drawn at random by the seed, 0 for all.

        Raises ValueError for a part that the data does not have.
        """
        parts = self.splits.parts()
        if part not in parts:
            raise ValueError(f"part: {self.data.name} has {', '.join(parts)}, got {part!r}")
        return self.config.sampled(parts[part], rows)


@dataclass(frozen=True)
class Prepared(PreparedData):
    """The same with the run's tokenizer, and its method's configuration with the ids of the answers."""

    tokenizer: PreTrainedTokenizerBase
    method_config: MethodConfig

    def with_histories(self, rows: pd.DataFrame, directions: Directions | None) -> pd.DataFrame:
        """Rows with the column `history`, of what their users liked before: the newest `max_history` items, or, by the
        directions of items, those most similar to the row's own; and then `history_order`, which of them to keep
        longest where a prompt is too long."""
        most = self.method_config.max_history
        if directions is None:
            return with_histories(rows, self.splits, most)
        whole = with_histories(rows, self.splits, _MOST_PAST)["history"].tolist()
        best = most_similar(whole, rows["item_id"].tolist(), directions, most)
        kept = [np.sort(places) for places in best]
        columns = {
            "history": [[one[place] for place in places] for one, places in zip(whole, kept, strict=True)],
            "history_order": [np.searchsorted(*both).tolist() for both in zip(kept, best, strict=True)],
        }
        return rows.assign(**{name: pd.Series(one, index=rows.index, dtype=object) for name, one in columns.items()})

    def prompts(
        self, rows: pd.DataFrame, user_vectors: Tensor | None, item_vectors: Tensor | None = None
    ) -> PromptDataset:
        """The rows, which have histories, as the language model reads them."""
        settings = self.method_config
        return PromptDataset(
            rows,
            self.data.titles,
            self.tokenizer,
            settings.template,
            settings.max_length,
            user_vectors,
            settings.splits_prompts,
            item_vectors,
        )


def prepare_on(config: RunConfig, source: str) -> PreparedData:
    """A run prepared, by `prepare_scored`, to score other data with the same ids.

    Data that brings its own train and valid stands for all of the run's. Of data that holds only some parts of a split,
    a test part say, those stand for the run's own, and what its users did before is known from the run's data too.

    Raises what `prepare` raises, and ValueError for ids of another kind than the run's.
    """
    other = load_interactions(source, config.positive_rating, parts_alone=True)
    if "split" not in other.frame or {"train", "valid"} <= set(other.frame["split"]):
        return prepare_scored(replace(config, data=source))
    own = prepare_scored(config)
    for name in ("user_id", "item_id"):
        kinds = [pd.api.types.is_integer_dtype(one.frame[name].dtype) for one in (own.data, other)]
        if kinds[0] != kinds[1]:
            said = ["whole numbers" if kind else "text" for kind in kinds]
            raise ValueError(f"data: {name} is {said[1]} in {other.name}, but {said[0]} in {own.data.name}")
    kept = [
        frame.assign(split=name)
        for name, frame in own.whole_splits.parts().items()
        if name not in set(other.frame["split"])
    ]
    frame = pd.concat([*kept, other.frame], ignore_index=True).sort_values("timestamp", kind="stable")
    data = Interactions(
        frame.reset_index(drop=True), own.data.titles | other.titles, other.name, own.data.genres | other.genres
    )
    # Cold items are drawn by those of train, which is the run's own, and so are the same ones again.
    config = replace(config, data=source, split="ratio", cold_share=config.share_of_cold_items)
    return replace(own, config=config, data=data)


def prepare_data(config: RunConfig) -> PreparedData:
    """Reads the data of a run alone."""
    return PreparedData(config, load_interactions(config.data, config.positive_rating))


def prepare_scored(config: RunConfig) -> PreparedData:
    """What a run's method scores rows with: what `prepare` gives, its data alone for a method that reads no prompts."""
    return prepare(config) if load_method(config.method).fit is None else prepare_data(config)


def refuse_other_tasks(config: RunConfig) -> None:
    """Raises ValueError for a method that does not score users and items."""
    if (task := load_method(config.method).task) != "rating":
        raise ValueError(
            f"method: expected one that scores users and items, got {config.method}, whose task is the {task}: it has "
            "train, recommend, score and info"
        )


def prepare(config: RunConfig) -> Prepared:
    """Reads the data and the tokenizer of a run.

    Raises what reading them raises, and ValueError for answers that are no token and a prompt that cannot be short
    enough: all that the settings and the data cannot do together is refused before anything is trained. For a method
    that reads no prompts too.
    """
    if load_method(config.method).fit is not None:
        raise ValueError(f"run: {config.method} has no language model and no prompts, which this command is about")
    refuse_other_tasks(config)
    data = load_interactions(config.data, config.positive_rating)
    tokenizer = load_tokenizer(config.model)
    settings = cast(MethodConfig, config.method_config()).with_answer_ids(tokenizer)
    PromptEncoder(tokenizer, settings.template, settings.max_length, settings.splits_prompts)  # for its checks
    return Prepared(config, data, tokenizer, settings)
