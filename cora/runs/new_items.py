"""What stands for items without a training row: the mean item, or what the language model reads out of their titles."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from cora.collaborative import CollaborativeEmbeddings, guessed_items
from cora.methods.model import MethodModel
from cora.methods.pair_model import PairModel
from cora.runs.distributed import is_main, wait_for_all
from cora.runs.folder import RunFolder
from cora.runs.prepare import Prepared
from cora.runs.similarity import title_vectors


def with_guesses(
    run: RunFolder, prepared: Prepared, base: PreTrainedModel, embeddings: CollaborativeEmbeddings
) -> CollaborativeEmbeddings:
    """The vectors of a run, with guesses of all items by their titles if it wants them; they are written beside the
    vectors, once.

    Raises ValueError, naming the setting, where too few items have vectors to learn from.
    """
    if prepared.config.new_items != "titles":
        return embeddings
    if is_main() and embeddings.guesses is None:
        counts = prepared.splits_of_vectors.train["item_id"].value_counts()
        items = sorted(prepared.data.frame["item_id"].unique().tolist())
        ratings = counts.reindex(pd.Index(items), fill_value=0).tolist()
        try:
            guesses = guessed_items(embeddings, items, title_vectors(prepared, base, items, _middle(base)), ratings)
        except ValueError as error:
            raise ValueError(f"new_items: {str(error).removeprefix('item_ids: ')}") from None
        embeddings.with_guesses(guesses).save(run.embeddings)
    wait_for_all()
    return run.vectors()


def guess_further(
    embeddings: CollaborativeEmbeddings, prepared: Prepared, model: MethodModel, item_ids: Sequence[Any]
) -> None:
    """Guesses those of the items too that were not there when the model was trained, by their titles, for the model
    and for the vectors of its run."""
    if embeddings.guesses is None:
        return
    unknown = embeddings.guesses.rows.unknown(item_ids)
    if new := list(dict.fromkeys(one for one, is_new in zip(item_ids, unknown, strict=True) if is_new)):
        model.patch.set_deltas(None)
        texts = title_vectors(prepared, model.base, new, _middle(model.base))
        embeddings.guesses = embeddings.guesses.beside(new, texts)
        if isinstance(model, PairModel):
            model.embeddings.guesses = embeddings.guesses


def _middle(base: PreTrainedModel) -> int:
    """Behind which layer titles are read: the last ones say more of the next word than of the title."""
    return int(base.config.num_hidden_layers) // 2
