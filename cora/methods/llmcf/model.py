"""LLMCFModel: a model of click-through whose extra feature is made of similar, earlier rows and their texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from cora.data import Splits
from cora.files import write_files
from cora.methods.llmcf.backbones import BACKBONES, MLP, with_past
from cora.methods.llmcf.config import LLMCFConfig
from cora.methods.llmcf.ict import ICT
from cora.methods.llmcf.retrieval import Examples, retrieve
from cora.methods.llmcf.rows import DECADES, Catalogue, Rows
from cora.tensors import Budget, described, misfit, read_tensors

_CONFIG, _WEIGHTS, _USERS, _ITEMS = "config.json", "model.safetensors", "users.parquet", "items.parquet"
_FIELDS = 5  # user, item, text, genres, decade
_SHARP = 0.1  # the temperature of similarities in the weighted label
_CHUNK = 4096  # rows scored at once
_SPARE = 2**20  # elements that a model may make while it is built, beyond twice those that are saved


class Retrieved(NamedTuple):
    """Of N rows places int64 [N, k] among the examples, -1 for none, and their similarities float [N, k]."""

    places: Tensor
    similarities: Tensor

    def of(self, rows: Tensor) -> "Retrieved":
        return Retrieved(self.places[rows], self.similarities[rows])


@dataclass(frozen=True)
class Told:
    """The examples that rows may be told of, E of them in time order: the rows that they are, times and labels int64
    [E], and the vectors of their texts fp32 [E, w], None where texts are not read."""

    rows: Rows
    times: Tensor
    labels: Tensor
    texts: Tensor | None

    @classmethod
    def none(cls, catalogue: Catalogue, most: int) -> "Told":
        nothing = torch.zeros(0, dtype=torch.int64)
        rows = Rows(nothing, nothing, nothing.view(0, most), torch.zeros(0, most))
        return cls(rows, nothing, nothing, None)


class LLMCFModel(nn.Module):
    """logit = backbone(fields, history, f), f of ICT, of the weighted label of the examples, or none.

    fields: vectors of the user, of the item, of its text (an MLP of the given vector), the mean of its genres' and its
    decade's. history: of what the user rated before, the sum of the vectors of item, text and genres, plus one for
    liked or disliked. f = h at the last position of `ICT`; or with feature knn w·(Σ_j s_j y_j - ½), s the softmax of
    the similarities over 0.1. Tables are shared by rows, their pasts and examples; vectors of texts are not trained.

    config, catalogue, told: what the configuration names, what is known of users and items, and the examples.
    """

    Config = LLMCFConfig
    texts: Tensor
    genre_shares: Tensor
    decades: Tensor
    trained: Tensor

    def __init__(self, config: LLMCFConfig, catalogue: Catalogue, told: Told) -> None:
        super().__init__()
        self.config, self.catalogue = config, catalogue
        width, text = config.width, catalogue.texts.shape[1]
        self.users = _table(len(catalogue.user_ids) + 1, width)
        self.items = _table(len(catalogue.item_ids) + 1, width)
        self.genres = _table(catalogue.genres.shape[1], width)
        self.decade = _table(DECADES, width)
        self.liked = _table(2, width)
        self.of_text = MLP(text, (64,), width) if text else None
        self.register_buffer("texts", catalogue.texts)
        self.register_buffer("genre_shares", catalogue.genres)
        self.register_buffer("decades", catalogue.decade)
        self.register_buffer("trained", catalogue.trained)
        feature = 0 if config.feature == "none" else width
        self.backbone = BACKBONES[config.backbone](_FIELDS, width, feature, config.hidden, config.dropout)
        self.ict: ICT | None = None
        self.of_knn: nn.Linear | None = None
        if config.feature == "ict":
            size = None if told.texts is None else told.texts.shape[1]
            self.ict = ICT((_FIELDS + 1) * width, size, width, hidden=2 * width)
        elif config.feature == "knn":
            self.of_knn = nn.Linear(1, width, bias=False)
        for name, one in zip(Rows._fields, told.rows, strict=True):
            self.register_buffer(f"told_{name}", one)
        self.register_buffer("told_times", told.times)
        self.register_buffer("told_labels", told.labels)
        self.register_buffer("told_texts", told.texts)

    @property
    def told(self) -> Told:
        rows = Rows(*(getattr(self, f"told_{name}") for name in Rows._fields))
        return Told(rows, self.told_times, self.told_labels, self.told_texts)  # type: ignore[arg-type]

    def retrieve(self, rows: Rows, times: np.ndarray) -> Retrieved:
        """The examples of rows of these times, int64 [N]: `retrieval.retrieve`."""
        told = self.told
        if self.config.feature == "none":
            return Retrieved(torch.zeros(len(times), 0, dtype=torch.int64), torch.zeros(len(times), 0))
        examples = Examples(told.times.numpy(), told.labels.numpy(), *self.catalogue.directions(told.rows))
        found = retrieve(times, *self.catalogue.directions(rows), examples, self.config.k)
        return Retrieved(*map(torch.from_numpy, found))

    def forward(self, rows: Rows, retrieved: Retrieved) -> tuple[Tensor, Tensor]:
        """The logits [B] of rows, and L_cot [], 0 where no texts are read."""
        used, examples = torch.unique(retrieved.places.clamp(min=0), return_inverse=True)
        of_examples = self.told.rows.of(used) if self.ict is not None else None
        parts = [rows] if of_examples is None else [rows, of_examples]
        items = torch.cat([one.flatten() for part in parts for one in (part.item, part.past)])
        unique, places = torch.unique(items, return_inverse=True)
        contents = _looked_up(self.contents(unique), places, parts)
        rows = self._less_known(rows)
        fields, history = self.read(rows, *contents[0])
        if self.training and self.config.item_dropout:
            unknown = torch.rand(len(fields)) < self.config.item_dropout
            fields[unknown, 1] = self.items.weight[0]
        there = retrieved.places >= 0
        labels = self.told_labels[retrieved.places.clamp(min=0)] if there.numel() else retrieved.places  # type: ignore[index]
        f, loss = self._weighted(labels, retrieved.similarities, there), fields.new_zeros(())
        if self.ict is not None and of_examples is not None:
            x = self._flat(*self.read(of_examples, *contents[1]), of_examples)
            texts = None if self.told_texts is None else self.told_texts[used]  # type: ignore[index]
            row = self.ict.of_row(self._flat(fields, history, rows))
            written = None if texts is None else self.ict.of_text(texts)[examples]  # type: ignore[misc]
            h = self.ict.read(row, self.ict.of_row(x)[examples], written, labels, there)
            f = h[:, -1]
            if texts is not None:
                loss = self.ict.text_loss(h, texts[examples], there)
        return self.backbone(fields, history, rows.rated, f), loss

    def contents(self, items: Tensor) -> Tensor:
        """[n, 4, width] of rows of the catalogue: vectors of the item, its text, its genres and its decade."""
        known = torch.where(self.trained[items], items, 0)
        own = self.items(known)
        text = torch.zeros_like(own) if self.of_text is None else self.of_text(self.texts[items])
        return torch.stack(
            [own, text, self.genre_shares[items] @ self.genres.weight, self.decade(self.decades[items])], 1
        )

    def read(self, rows: Rows, item: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """fields [B, 5, width] and history [B, H, width] of rows, the contents of their items [B, 4, width] and those
        of their pasts [B, H, 4, width]."""
        fields = torch.cat([self.users(rows.user)[:, None], item], 1)
        return fields, past[:, :, :3].sum(2) + self.liked((rows.rated > 0).long())

    @staticmethod
    def _flat(fields: Tensor, history: Tensor, rows: Rows) -> Tensor:
        return with_past(fields, history, rows.rated).flatten(1)

    def _less_known(self, rows: Rows) -> Rows:
        """In training some users are taken for unknown: most of those that are scored later are."""
        if not self.training or not self.config.user_dropout:
            return rows
        known = torch.rand(len(rows.user)) >= self.config.user_dropout
        return rows._replace(user=rows.user * known)

    def _weighted(self, labels: Tensor, similarities: Tensor, there: Tensor) -> Tensor | None:
        """The feature of the control: the label of the examples weighted by similarity, less ½; 0 for none."""
        if self.of_knn is None:
            return None
        weights = (similarities / _SHARP).masked_fill(~there, -torch.inf).softmax(1).nan_to_num()
        mean = (weights * (labels - 0.5)).sum(1, keepdim=True)
        found: Tensor = self.of_knn(mean)
        return found

    @torch.no_grad()
    def scores(self, rows: Rows, retrieved: Retrieved) -> Tensor:
        """Logits fp32 [N] of any number of rows, in chunks, without dropout."""
        scorer = Scorer(self.eval())
        chunks = torch.arange(len(rows.user)).split(_CHUNK)
        parts = [scorer(*rows.of(some), *retrieved.of(some)) for some in tqdm(chunks, desc="scores", delay=2)]
        return torch.cat([torch.zeros(0), *parts])

    def score_rows(self, frame: pd.DataFrame, splits: Splits) -> np.ndarray:
        """Logits float32 [rows] of a frame with user_id, item_id and timestamp, each by what was before its time."""
        rows = self.catalogue.rows(frame, splits, self.config.max_history)
        return np.asarray(self.scores(rows, self.retrieve(rows, frame["timestamp"].to_numpy())))

    def exported(self) -> torch.export.ExportedProgram:
        """The scorer as a program: the tensors of `Scorer.forward`, of any number of rows, to logits. It needs neither
        this package nor a language model."""
        scorer, most = Scorer(self.eval()), self.config.max_history
        whole, some = torch.zeros(2, dtype=torch.int64), torch.zeros(2, most)
        examples = torch.zeros(2, 0 if self.config.feature == "none" else self.config.k)
        given = whole, whole.clone(), some.long(), some, examples.long() - 1, examples
        batch = torch.export.Dim("batch", min=1)
        with torch.no_grad():
            return torch.export.export(scorer.eval(), given, dynamic_shapes=[{0: batch}] * len(given))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the configuration, the weights with all that is known of items and examples, and the ids."""
        weights = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        ids = {_USERS: ("user_id", self.catalogue.user_ids), _ITEMS: ("item_id", self.catalogue.item_ids)}
        writers: dict[str, Any] = {
            name: lambda path, of=of: pd.DataFrame({of[0]: of[1]}).to_parquet(path, index=False)
            for name, of in ids.items()
        }
        writers[_WEIGHTS] = lambda path: save_file(weights, path, metadata={"format": "pt"})
        writers[_CONFIG] = lambda path: path.write_text(self.config.to_json_string(), encoding="utf-8")
        write_files(Path(folder), writers)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LLMCFModel":
        """Reads what `save_pretrained` wrote, in eval mode. Raises FileNotFoundError for a missing file, ValueError for
        a folder of another format or method, and for weights that do not fit the configuration and the ids."""
        folder = Path(folder)
        if missing := [name for name in (_CONFIG, _WEIGHTS, _USERS, _ITEMS) if not (folder / name).is_file()]:
            raise FileNotFoundError(f"{folder}: not a saved llmcf model, {', '.join(missing)} missing")
        config, saved = LLMCFConfig.load(folder / _CONFIG), described(folder / _WEIGHTS)
        ids = [pd.read_parquet(folder / name).iloc[:, 0].tolist() for name in (_USERS, _ITEMS)]
        elements = sum(int(np.prod(one.shape)) for one in saved.values())
        shapes = {name: one.shape for name, one in saved.items()}
        with Budget(f"{folder / _CONFIG} does not fit {_WEIGHTS}", 2 * elements + _SPARE):
            model = cls._empty(config, ids, shapes)
        if problem := misfit(saved, model.state_dict()):
            raise ValueError(f"{folder / _WEIGHTS} does not fit {folder / _CONFIG}: {problem}")
        model.load_state_dict(read_tensors(folder / _WEIGHTS))
        return model.eval()

    @classmethod
    def _empty(cls, config: LLMCFConfig, ids: list[list[Any]], shapes: dict[str, tuple[int, ...]]) -> "LLMCFModel":
        """A model of these sizes: what is known of items and examples is as large as the file says."""
        of = {name: shape[-1] if len(shape) == 2 else 0 for name, shape in shapes.items()}
        items, told = len(ids[1]) + 1, (shapes.get("told_times") or (0,))[0]
        catalogue = Catalogue(
            ids[0],
            ids[1],
            torch.zeros(items, dtype=torch.bool),
            torch.zeros(items, dtype=torch.int64),
            torch.zeros(items, of.get("genre_shares", 0)),
            torch.zeros(items, of.get("texts", 0)),
        )
        none = torch.zeros(told, dtype=torch.int64)
        past = torch.zeros(told, config.max_history)
        texts = torch.zeros(told, of["told_texts"]) if "told_texts" in shapes else None
        return cls(
            config, catalogue, Told(Rows(none, none.clone(), past.long(), past), none.clone(), none.clone(), texts)
        )


class Scorer(nn.Module):
    """The logits of rows by a trained model, without autograd: what does not change any more is computed once.

    model: an LLMCFModel in eval mode. It knows no language model and no text, and can be exported by torch.export.
    """

    known: Tensor
    examples: Tensor
    written: Tensor | None

    def __init__(self, model: LLMCFModel) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            self.register_buffer("known", model.contents(torch.arange(len(model.items.weight))))
            if model.ict is not None:
                told = model.told
                fields, history = model.read(told.rows, self.known[told.rows.item], self.known[told.rows.past])
                self.register_buffer("examples", model.ict.of_row(model._flat(fields, history, told.rows)))
                written = None if told.texts is None else model.ict.of_text(told.texts)  # type: ignore[misc]
                self.register_buffer("written", written)

    def forward(
        self, user: Tensor, item: Tensor, past: Tensor, rated: Tensor, places: Tensor, similarities: Tensor
    ) -> Tensor:
        """[B] of the fields of `Rows` and of `Retrieved`."""
        model, rows = self.model, Rows(user, item, past, rated)
        fields, history = model.read(rows, self.known[item], self.known[past])
        there, places = places >= 0, places.clamp(min=0)
        labels = model.told.labels[places] if model.config.feature != "none" else places
        f = model._weighted(labels, similarities, there)
        if model.ict is not None:
            x = model.ict.of_row(model._flat(fields, history, rows))
            texts = None if self.written is None else self.written[places]
            f = model.ict.read(x, self.examples[places], texts, labels, there, last=True)[:, -1]
        logits: Tensor = model.backbone(fields, history, rated, f)
        return logits


def _table(rows: int, width: int) -> nn.Embedding:
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=0.1)
    return table


def _looked_up(contents: Tensor, places: Tensor, parts: Sequence[Rows]) -> list[tuple[Tensor, Tensor]]:
    """The contents of the items and of the pasts of each of the parts, whose places are one behind the other."""
    found, start = [], 0
    for part in parts:
        count, most = part.past.shape
        item, past = places[start : start + count], places[start + count : start + count * (1 + most)]
        found.append((contents[item], contents[past].unflatten(0, (count, most))))
        start += count * (1 + most)
    return found
