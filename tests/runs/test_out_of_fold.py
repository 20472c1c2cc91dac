"""With vectors_share no vector has seen a label that the language model is trained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cora.cli import main
from cora.collaborative import CollaborativeEmbeddings
from cora.data import earliest
from cora.runs.families import rows_of_training
from cora.runs.folder import RunFolder
from cora.runs.prepare import Prepared, prepare
from cora.runs.settings import RunConfig
from cora.runs.train import train
from cora.runs.vectors import collaborative_vectors

pytestmark = pytest.mark.filterwarnings("ignore:.*unknown .* ids")
FIELDS = {"method": "reclora", "collaborative": "din", "vectors_share": 0.6}


def reclora(settings: dict[str, Any], **more: Any) -> RunConfig:
    cora = {name: settings["cora"][name] for name in ("r", "prompt", "max_history")} | dict(meta_loras=2)
    return RunConfig(**settings | FIELDS | {"cora": cora} | more)


def made(config: RunConfig, folder: Path) -> tuple[Prepared, CollaborativeEmbeddings]:
    prepared = prepare(config)
    return prepared, collaborative_vectors(prepared, RunFolder(folder))


@pytest.mark.parametrize("shared_prefix", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_no_row_of_the_language_model_is_one_of_the_vectors(
    settings: dict[str, Any], share: float, shared_prefix: bool
) -> None:
    cora = settings["cora"] | {"shared_prefix": shared_prefix}
    prepared = prepare(RunConfig(**settings | {"vectors_share": share, "steps": 1000, "cora": cora}))
    whole, fitted = prepared.splits.train, prepared.splits_of_vectors
    rows = rows_of_training(prepared)
    seen = pd.concat([fitted.train, fitted.valid])
    assert len(seen) == round(share * len(whole)) and len(seen) + len(rows) == len(whole)
    assert not rows.index.intersection(seen.index).size
    assert fitted.train["timestamp"].max() < fitted.valid["timestamp"].min()
    assert seen["timestamp"].max() < whole.loc[rows.index, "timestamp"].min()
    assert rows["timestamp"].min() > seen["timestamp"].max()


def test_no_vector_depends_on_its_rows_label_or_on_a_later_one(settings: dict[str, Any], tmp_path: Path) -> None:
    config = reclora(settings)
    prepared, embeddings = made(config, tmp_path / "first")
    rows = prepared.rows_of_model
    frame = pd.read_csv(settings["data"])
    c = prepared.user_vectors(embeddings, rows)
    assert c is not None
    for place in (0, len(rows) // 2):
        later = frame["timestamp"] >= rows["timestamp"].iloc[place]
        turned = frame.assign(rating=np.where(later, 7 - frame["rating"], frame["rating"]))
        turned.to_csv(tmp_path / "turned.csv", index=False)
        other, again = made(reclora(settings, data=str(tmp_path / "turned.csv")), tmp_path / f"turned-{place}")
        assert (other.rows_of_model["label"].iloc[place:] != rows["label"].iloc[place:]).all()
        assert torch.equal(again.items, embeddings.items) and torch.equal(again.users, embeddings.users)
        found = other.user_vectors(again, other.rows_of_model)
        assert found is not None and torch.equal(found[: place + 1], c[: place + 1])


def test_by_all_rows_a_vector_depends_on_the_label_of_its_row(settings: dict[str, Any], tmp_path: Path) -> None:
    """Else the test above would say nothing."""
    config = reclora(settings, vectors_share=1.0)
    _, embeddings = made(config, tmp_path / "first")
    frame = pd.read_csv(settings["data"])
    turned = frame.assign(rating=np.where(frame["timestamp"] >= 250 * 60, 7 - frame["rating"], frame["rating"]))
    turned.to_csv(tmp_path / "turned.csv", index=False)
    _, again = made(reclora(settings, data=str(tmp_path / "turned.csv"), vectors_share=1.0), tmp_path / "turned")
    assert not torch.equal(again.items, embeddings.items)


def test_a_run_says_who_saw_what(settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = reclora(settings, steps=3)
    prepared = prepare(config)
    found = train(config, tmp_path / "run")
    assert found["training_rows"] == {"collaborative": len(prepared.splits_of_vectors.train), "reclora": 24}
    assert found["vectors_on_training_rows"].keys() == {"collaborative", "fold_in"}
    assert found == json.loads((tmp_path / "run" / "metrics.json").read_text())
    # The vectors by themselves are those of the run.
    out = tmp_path / "v.safetensors"
    given = ["--data", settings["data"], "--dim", "8", "--collaborative", "din", "--vectors-share", "0.6"]
    assert main(["fit", *given, "--out", str(out)]) == 0
    alone, of_run = CollaborativeEmbeddings.load(out), RunFolder(tmp_path / "run").vectors()
    assert torch.equal(alone.items, of_run.items) and torch.equal(alone.users, of_run.users)


def test_the_earliest_rows_tear_no_moment() -> None:
    rows = pd.DataFrame({"timestamp": [1, 2, 3, 3, 3, 4], "row": range(6)})
    for share in (0.35, 0.5, 0.7):
        early, late = earliest(rows, share)
        assert early["row"].tolist() == [0, 1] and late["row"].tolist() == [2, 3, 4, 5]
    assert all(len(earliest(rows, share)[0]) == 5 for share in (0.8, 0.9, 1.0))
    for frame, share in ((rows, 0.01), (rows.assign(timestamp=5), 0.5), (rows[:0], 0.5)):
        with pytest.raises(ValueError, match="share: .* cannot be divided in time"):
            earliest(frame, share)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"vectors_share": 0}, "vectors_share: expected a number above 0 and up to 1, got 0"),
        ({"vectors_share": True}, "vectors_share: expected a number above 0 and up to 1, got True"),
        ({"vectors_share": 0.5, "method": "lcrec"}, "vectors_share: lcrec is trained on whole sequences"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RunConfig(**{"data": "d", "model": "m"} | wrong)


def test_a_share_of_nothing_is_refused_before_anything_is_written(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vectors_share: 0.0001 of 320 rows cannot be divided in time"):
        train(RunConfig(**settings | {"vectors_share": 0.0001}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
