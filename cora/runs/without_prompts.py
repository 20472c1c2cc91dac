"""Runs of methods that score without a language model: trained on all rows at once, in the folder of any run."""

import json
from typing import Any

from cora.methods import load_method
from cora.runs.distributed import process_count
from cora.runs.folder import RunFolder
from cora.runs.metrics import summary
from cora.runs.pictures import training_picture
from cora.runs.prepare import prepare_data
from cora.runs.score import collaborative_scores, unscored
from cora.runs.settings import RunConfig
from cora.runs.vectors import collaborative_vectors


def train_without_prompts(config: RunConfig, run: RunFolder) -> dict[str, Any]:
    """Trains, evaluates and saves one run; returns what its metrics.json holds.

    All rows of train are trained on and all of valid choose the state that is kept; the test rows are those that the
    other methods score, drawn by test_rows and the seed. Steps, rates and the other settings of the Trainer do not
    count: the method's own configuration has them. Raises as `train` does, and ValueError for several processes.
    """
    if process_count() > 1:
        raise ValueError(f"method: {config.method} is trained by one process, the launcher started {process_count()}")
    prepared = prepare_data(config)
    method = load_method(config.method)
    part = "test" if prepared.splits.test is not None else "valid"
    rows = prepared.drawn(part, config.test_rows if part == "test" else config.valid_rows).reset_index(drop=True)
    with run.opened(config):
        if run.metrics.is_file():
            print(f"{run.path} holds this run, finished")
            return dict(json.loads(run.metrics.read_text(encoding="utf-8")))
        embeddings = collaborative_vectors(prepared, run)
        found = collaborative_scores(embeddings, unscored(rows), prepared.user_vectors(embeddings, rows, part))
        settings = config.method_config()
        model, history = method.fit(prepared.splits, prepared.data, settings, config.seed)
        model.save_pretrained(run.model)
        run.write(run.history, json.dumps(history, indent=1) + "\n")
        training_picture(history, config.method, "untrained", {}, run.picture)
        print(f"{len(found)} {part} rows scored by {method.label}")
        found[config.method] = model.score_rows(rows, prepared.splits)
        run.write(run.predictions, found)
        best = max(entry["eval_auc"] for entry in history)
        result = {"part": part} | summary(found) | {"valid_auc": best, "steps": history[-1]["step"]}
        sizes = len(prepared.splits_of_vectors.train), len(prepared.splits.train)
        result["training_rows"] = dict(zip(("collaborative", config.method), sizes, strict=True))
        run.write(run.metrics, json.dumps(result, indent=2) + "\n")
    return result
