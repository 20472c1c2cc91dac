"""The fit of a method that says which item comes next: the Trainer, with NDCG of ranked validation rows."""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset, Subset
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from cora.runs.fit import FiniteTrainer, TimeLimit, last_checkpoint, training_arguments
from cora.runs.folder import RunFolder
from cora.runs.settings import RunConfig

MEASURE = "ndcg@10"


def next_item_arguments(config: RunConfig, run: RunFolder) -> TrainingArguments:
    """As for methods that score rows, but for the measure by which the best checkpoint is known."""
    return training_arguments(config, run, MEASURE)


def fit_next_items(
    config: RunConfig,
    run: RunFolder,
    arguments: TrainingArguments,
    model: Any,
    examples: Dataset[Any],
    collate: Callable[[list[Any]], dict[str, Any]],
    validate: Callable[[], dict[str, float]],
) -> list[dict[str, Any]]:
    """Trains the model to its best checkpoint by `validate`'s ndcg@10, from the last one there is; returns the log of
    the Trainer. examples: as many as are asked for, by index.

    Raises Diverged, a ValueError, when the loss is not finite; the checkpoints are kept.
    """
    checkpoint = last_checkpoint(run.checkpoints)
    arguments.eval_on_start = checkpoint is None
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    callbacks: list[TrainerCallback] = [EarlyStoppingCallback(config.patience)]
    if config.max_minutes is not None:
        callbacks.append(TimeLimit(60 * config.max_minutes))
    trainer = RankingTrainer(
        model,
        arguments,
        data_collator=collate,
        train_dataset=Subset(examples, range(arguments.max_steps * batch)),
        eval_dataset=Subset(examples, range(1)),  # is not read: validate ranks
        callbacks=callbacks,
    )
    trainer.validate = validate
    trainer.train(resume_from_checkpoint=checkpoint)
    history: list[dict[str, Any]] = trainer.state.log_history
    model.save_pretrained(run.model)
    run.write(run.history, json.dumps(history, indent=1) + "\n")
    return history


class RankingTrainer(FiniteTrainer):
    """Validates by ranking: what `validate` gives, each name with eval_ in front."""

    validate: Callable[[], dict[str, float]]

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        with torch.no_grad():
            found = {f"{metric_key_prefix}_{name}": value for name, value in self.validate().items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found
