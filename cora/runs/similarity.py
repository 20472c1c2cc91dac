"""By which vectors of items `--history similar` finds what of a past speaks to the item asked about."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from cora.codes.vectors import text_vectors
from cora.collaborative import CollaborativeEmbeddings, Directions
from cora.files import write_files
from cora.prompts.template import one_line
from cora.runs.distributed import is_main, wait_for_all
from cora.runs.folder import RunFolder
from cora.runs.prepare import Prepared
from cora.tensors import packed_ids, read_tensors, unpacked_ids

_IDS, _VECTORS = "item_ids", "vectors"


def write_title_vectors(run: RunFolder, prepared: Prepared, base: PreTrainedModel) -> None:
    """Writes the vectors of all titles by the language model as it came, if the run compares them and has none yet."""
    config = prepared.config
    if config.history == "similar" and config.similarity != "collaborative" and not run.titles.is_file() and is_main():
        items = sorted(prepared.data.frame["item_id"].unique().tolist())
        tensors = {_IDS: packed_ids(items), _VECTORS: title_vectors(prepared, base, items)}
        write_files(run.path, {run.titles.name: lambda file: save_file(tensors, file)})
    wait_for_all()


def title_vectors(prepared: Prepared, base: PreTrainedModel, items: Sequence[Any], layer: int | None = None) -> Tensor:
    """[n, h]: of the items' titles, by `text_vectors`."""
    # In quotes, as prompts have them: a title of blanks has a token then.
    titles = [f'"{one_line(prepared.data.titles[item])}"' for item in items]
    return text_vectors(base.eval(), prepared.tokenizer, titles, layer=layer)


def directions_of(run: RunFolder, embeddings: CollaborativeEmbeddings) -> Directions | None:
    """Where the vectors of items point by which the run compares them, None for histories of the newest items."""
    config = run.config()
    if config.history == "recent":
        return None
    collaborative = Directions.of(embeddings.item_ids, embeddings.items)
    if config.similarity == "collaborative":
        return collaborative
    titles = _title_directions(run.titles)
    return titles if config.similarity == "text" else collaborative.beside(titles)


def _title_directions(path: Path) -> Directions:
    tensors = read_tensors(path, (_IDS, _VECTORS))
    ids = unpacked_ids(_IDS, tensors[_IDS])
    return Directions.of(ids.tolist() if isinstance(ids, Tensor) else ids, tensors[_VECTORS])
