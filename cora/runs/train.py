"""Trains CoRA on interactions: collaborative vectors, prompts, transformers' Trainer, and what a run leaves behind."""

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import Subset
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import get_length_grouped_indices

from cora.collaborative import CollaborativeEmbeddings, train_mf
from cora.data import Splits
from cora.llm.loading import chosen_dtype, load_base, load_tokenizer
from cora.methods.cora.model import CoRAModel
from cora.prompts import PromptCollator, PromptDataset, PromptEncoder
from cora.runs.folder import RunFolder
from cora.runs.metrics import collaborative_scores, score_prompts, summary
from cora.runs.pictures import training_picture
from cora.runs.settings import RunConfig

_KEY = ["user_id", "item_id", "label", "timestamp", "warm"]


def train(config: RunConfig, out: str | Path) -> dict[str, Any]:
    """Trains, evaluates and saves one run in the folder `out`; returns what its metrics.json holds.

    The test rows (the validation rows where the data has no test part) are scored by the collaborative vectors alone,
    by the language model alone and by CoRA, whose best checkpoint by validation AUC is kept. Called again for the same
    folder it goes on where it was stopped, from the last checkpoint, to the same losses.

    Raises what reading the data and the model raises; FileExistsError for a folder that holds other things.
    """
    run = RunFolder(out)
    data = config.interactions()
    splits = config.splits(data)
    arguments = _arguments(config, run)
    tokenizer = load_tokenizer(config.model)
    settings = config.model_config().with_answer_ids(tokenizer)
    # What the data and the settings cannot do together is refused now, rather than after vectors have been trained.
    PromptEncoder(tokenizer, settings.template, settings.max_length)
    part, rows = _rows(config, splits)
    run.open(config)
    if run.metrics.is_file():
        print(f"{run.path} holds this run, finished")
        return dict(json.loads(run.metrics.read_text(encoding="utf-8")))

    embeddings = _collaborative(config, run, splits)
    torch.manual_seed(config.seed)
    base = load_base(config.model, dtype=chosen_dtype(config.dtype, arguments.device))
    model = CoRAModel(base, settings, embeddings).to(arguments.device)
    print(model.patch)
    for frame in rows.values():
        # Unknown ids are reported at their first lookup: now, rather than between the lines of a progress bar.
        embeddings.score(frame["user_id"].tolist(), frame["item_id"].tolist())
    vectors = {name: config.user_vectors(embeddings, frame, data.frame) for name, frame in rows.items()}
    prompts = {
        name: PromptDataset(frame, data.titles, tokenizer, settings.template, settings.max_length, vectors[name])
        for name, frame in rows.items()
    }
    collate = PromptCollator(tokenizer)
    found = _earlier_predictions(run, rows[part])
    found = collaborative_scores(embeddings, found, vectors[part])
    if "llm" not in found:
        print(f"{len(found)} {part} rows scored by the language model alone")
        found["llm"] = score_prompts(model, prompts[part], collate, adapted=False)
        run.write(run.predictions, found)
    history = _fit(config, run, arguments, model, prompts, collate)
    alone = collaborative_scores(embeddings, rows["valid"], vectors["valid"])
    training_picture(history, {name: one["auc"] for name, one in summary(alone)["methods"].items()}, run.picture)
    print(f"{len(found)} {part} rows scored by CoRA")
    found["cora"] = score_prompts(model, prompts[part], collate)
    run.write(run.predictions, found)
    result = {"part": part} | summary(found) | {"valid_auc": _best(history), "steps": history[-1]["step"]}
    run.write(run.metrics, json.dumps(result, indent=2) + "\n")
    return result


def _arguments(config: RunConfig, run: RunFolder) -> TrainingArguments:
    """TrainingArguments from the settings; those under `trainer` overrule the rest."""
    chosen: dict[str, Any] = dict(
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=2 * config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.08},
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        eval_steps=config.eval_every,
        save_strategy="steps",
        save_steps=config.eval_every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="auc",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        logging_steps=10,
        report_to=["tensorboard"],
        seed=config.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
    )
    return TrainingArguments(**{**chosen, **config.trainer, "output_dir": str(run.checkpoints)})


def _collaborative(config: RunConfig, run: RunFolder, splits: Splits) -> CollaborativeEmbeddings:
    """The vectors of the run: those of the file named, those trained before, or matrix factorisation trained now."""
    if config.embeddings is not None:
        return CollaborativeEmbeddings.load(config.embeddings)
    if not run.embeddings.is_file():
        embeddings, result = train_mf(splits.train, splits.valid, config.mf_dim, seed=config.seed)
        embeddings.save(run.embeddings)
        print(f"matrix factorisation: valid AUC {result.valid_auc:.4f} after {result.best_epoch + 1} epochs")
    return CollaborativeEmbeddings.load(run.embeddings)


def _rows(config: RunConfig, splits: Splits) -> tuple[str, dict[str, pd.DataFrame]]:
    """The part that is reported on, and the rows used of every part."""
    rows = {
        "train": config.sampled(splits.train, config.steps * config.batch_size),
        "valid": config.sampled(splits.valid, config.valid_rows),
    }
    if rows["valid"]["label"].nunique() < 2:
        raise ValueError(f"valid_rows: the {len(rows['valid'])} rows drawn have one label only, an AUC needs both")
    if splits.test is None:
        return "valid", rows
    return "test", rows | {"test": config.sampled(splits.test, config.test_rows)}


def _earlier_predictions(run: RunFolder, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the scores that an earlier, stopped call has written."""
    return pd.read_parquet(run.predictions) if run.predictions.is_file() else rows[_KEY].reset_index(drop=True)


def _fit(
    config: RunConfig,
    run: RunFolder,
    arguments: TrainingArguments,
    model: CoRAModel,
    prompts: dict[str, PromptDataset],
    collate: PromptCollator,
) -> list[dict[str, Any]]:
    """Trains the model to its best checkpoint, from the last one there is; returns the Trainer's log."""
    checkpoint = _last_checkpoint(run.checkpoints)
    arguments.eval_on_start = checkpoint is None
    callbacks: list[TrainerCallback] = [EarlyStoppingCallback(config.patience)]
    if config.max_minutes is not None:
        callbacks.append(TimeLimit(60 * config.max_minutes))
    trainer = Trainer(
        model,
        arguments,
        data_collator=collate,
        train_dataset=_in_batches_of_length(prompts["train"], arguments),
        eval_dataset=Subset(prompts["valid"], prompts["valid"].lengths.argsort(kind="stable").tolist()),
        compute_metrics=_valid_auc,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    model.save_pretrained(run.model)
    history: list[dict[str, Any]] = trainer.state.log_history
    run.write(run.history, json.dumps(history, indent=1) + "\n")
    return history


def _in_batches_of_length(prompts: PromptDataset, arguments: TrainingArguments) -> Subset[dict[str, Any]]:
    """The prompts in the order of training, over all epochs: shuffled, those of a batch of similar length.

    Made at once from the seed: the Trainer's own sampler draws from a global state that a resumed run does not have.
    """
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    lengths = prompts.lengths.tolist()
    generator = torch.Generator().manual_seed(arguments.seed)
    order: list[int] = []
    while len(order) < arguments.max_steps * batch:
        order += get_length_grouped_indices(lengths, batch, generator=generator)
    return Subset(prompts, order[: arguments.max_steps * batch])


def _valid_auc(prediction: EvalPrediction) -> dict[str, float]:
    return {"auc": float(roc_auc_score(prediction.label_ids, prediction.predictions))}


class TimeLimit(TrainerCallback, ExportableState):
    """Ends training after so many seconds of it, those before an interruption included, with a last validation."""

    def __init__(self, seconds: float, spent: float = 0.0) -> None:
        self.seconds = seconds
        self.spent = spent
        self.since = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.since = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.spent + time.monotonic() - self.since > self.seconds:
            control.should_training_stop = control.should_evaluate = control.should_save = True

    def state(self) -> dict[str, Any]:
        spent = self.spent + time.monotonic() - self.since
        return {"args": {"seconds": self.seconds, "spent": spent}, "attributes": {}}


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: the Trainer writes its own state last."""
    found = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found.append((state["global_step"], str(checkpoint)))
    return max(found)[1] if found else None


def _best(history: list[dict[str, Any]]) -> float | None:
    return max((entry["eval_auc"] for entry in history if "eval_auc" in entry), default=None)
