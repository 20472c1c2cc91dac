"""The fit of a method's model by transformers' Trainer: order of the prompts, checkpoints, when it stops."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import Dataset, Subset
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

from cora.methods.model import MethodModel
from cora.prompts import PromptCollator, PromptDataset
from cora.runs.allocator import keep_freed_memory
from cora.runs.distributed import is_main, of_main
from cora.runs.families import FamilyBatches, families_of_prompts
from cora.runs.folder import RunFolder
from cora.runs.gates import samples_of
from cora.runs.settings import RunConfig


def training_arguments(config: RunConfig, run: RunFolder, measure: str = "auc") -> TrainingArguments:
    """TrainingArguments from the settings; those under `trainer` override the rest. measure: of the validations, the
    higher the better."""
    chosen: dict[str, Any] = dict(
        max_steps=config.steps,
        # Prompts in families come in batches already, by tokens.
        per_device_train_batch_size=1 if config.method_config().splits_prompts else config.batch_size,
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
        metric_for_best_model=measure,
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


def fit(
    config: RunConfig,
    run: RunFolder,
    arguments: TrainingArguments,
    model: MethodModel,
    prompts: dict[str, PromptDataset],
) -> list[dict[str, Any]]:
    """Trains the model to its best checkpoint, from the last one there is; returns the Trainer's log.

    Of a model that ranks before it has learned anything, as with an offset, the start is a checkpoint like the others:
    what it is trained to is never worse on the validation rows.

    Raises Diverged, a ValueError, when the loss or a score is not finite; the checkpoints are kept.
    """
    checkpoint = last_checkpoint(run.checkpoints)
    arguments.eval_on_start = checkpoint is None
    callbacks: list[TrainerCallback] = [EarlyStoppingCallback(config.patience), Progress(model)]
    if config.max_minutes is not None:
        callbacks.append(TimeLimit(60 * config.max_minutes))
    training: Dataset[Any]
    if config.method_config().splits_prompts:
        shared = model.train().scorer.packs(torch.ones(1, int(prompts["train"].lengths.max())))
        training = FamilyBatches(prompts["train"], config, arguments, shared)
    else:
        training = _in_batches_of_length(prompts["train"], arguments)
    valid_samples = samples_of(prompts["valid"])
    trainer = FiniteTrainer(
        model,
        arguments,
        data_collator=PromptCollator(prompts["train"].tokenizer),
        train_dataset=training,
        eval_dataset=Subset(prompts["valid"], _in_order(prompts["valid"])),
        compute_metrics=lambda prediction: _valid_auc(prediction) | model.watched(valid_samples),
        callbacks=callbacks,
    )
    if is_main():
        print(_announcement(arguments, model, prompts, training))
    start = {name: value.clone() for name, value in model.state_dict().items()} if model.ranks_from_the_start else None
    trainer.train(resume_from_checkpoint=checkpoint)
    history: list[dict[str, Any]] = trainer.state.log_history
    if start is not None and _start_is_best(history):
        print("no checkpoint ranks the validation rows better than the start did: the start is kept")
        model.load_state_dict(start)
    if is_main():
        model.save_pretrained(run.model)
    run.write(run.history, json.dumps(history, indent=1) + "\n")
    return history


def _start_is_best(history: list[dict[str, Any]]) -> bool:
    """Whether the validation before the first step has a higher AUC than every one after it."""
    aucs = [(entry["step"], entry["eval_auc"]) for entry in history if "eval_auc" in entry]
    start = [auc for step, auc in aucs if step == 0]
    return bool(start) and all(auc < start[0] for step, auc in aucs if step > 0)


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


def _in_order(prompts: PromptDataset) -> list[int]:
    """The rows from the shortest on, those that begin alike together."""
    if prompts.prefix_lengths is None:
        return list(prompts.lengths.argsort(kind="stable").tolist())
    families = sorted(families_of_prompts(prompts), key=lambda family: prompts.lengths[family[0]])
    return [row for family in families for row in family]


def _valid_auc(prediction: EvalPrediction) -> dict[str, float]:
    scores = np.asarray(prediction.predictions)
    if bad := int((~np.isfinite(scores)).sum()):
        raise Diverged(f"{bad} of {len(scores)} validation scores are not finite")
    return {"auc": float(roc_auc_score(prediction.label_ids, scores))}


class Diverged(ValueError):
    """Training has left the finite numbers."""


class FiniteTrainer(Trainer):
    """Stops where the loss is not finite: transformers' own would go on, and log a filtered loss."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        # A GPU is waited for at the steps that wait for it anyway, to log.
        looks = loss.device.type == "cpu" or (self.state.global_step + 1) % self.args.logging_steps == 0
        if looks and not bool(loss.isfinite()):
            raise Diverged(f"the loss is {loss.item()}")
        return loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        keep_freed_memory()
        try:
            return super().train(*args, **kwargs)
        except Diverged as error:
            state, best = self.state, "there is no checkpoint yet"
            if state.best_model_checkpoint:
                measure = str(self.args.metric_for_best_model).upper()
                best = f"the best checkpoint, of {measure} {state.best_metric:.4f}, is kept in "
                best += str(state.best_model_checkpoint)
            raise Diverged(
                f"training diverged at step {state.global_step + 1}: {error} (learning_rate "
                f"{self.args.learning_rate:g}); try a tenth of that learning rate, or more warmup_steps, in another "
                f"folder; {best}"
            ) from error


def _announcement(
    arguments: TrainingArguments,
    model: MethodModel,
    prompts: dict[str, PromptDataset],
    training: Dataset[Any],
) -> str:
    """How long the training will take at the speed of this machine, by one step that changes nothing."""
    collate = PromptCollator(prompts["train"].tokenizer)
    if isinstance(training, FamilyBatches):
        batch = collate([training[0]])
    else:
        middle = prompts["train"].lengths.argsort(kind="stable")
        start = max(0, (len(middle) - arguments.train_batch_size) // 2)
        batch = collate([prompts["train"][int(row)] for row in middle[start : start + arguments.train_batch_size]])
    batch = {name: value.to(model.base.device) if hasattr(value, "to") else value for name, value in batch.items()}
    with torch.random.fork_rng():
        begun = time.monotonic()
        model.train()(**batch).loss.backward()
        step = (time.monotonic() - begun) * arguments.gradient_accumulation_steps
    model.zero_grad(set_to_none=True)
    validations = arguments.max_steps // int(arguments.eval_steps or arguments.max_steps) + 1
    # A validation row has the forward alone, about a third of what a training row costs.
    rows = validations * len(prompts["valid"]) / 3 / len(batch["labels"]) / arguments.world_size
    minutes = (arguments.max_steps + rows) * step / 60
    prompts_a_step = len(batch["labels"]) * arguments.gradient_accumulation_steps * arguments.world_size
    return (
        f"{arguments.max_steps} steps of {prompts_a_step} prompts and {validations} validations of "
        f"{len(prompts['valid'])}: about {minutes:.1f} minutes on this machine, if nothing ends it early"
    )


class Progress(TrainerCallback):
    """Tells the model before every step how much of its training is done."""

    def __init__(self, model: MethodModel) -> None:
        self.model = model

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.model.at(state.global_step / max(1, state.max_steps))


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
        # By one clock: processes that stopped at different steps would wait for each other without end.
        if of_main(self.spent + time.monotonic() - self.since > self.seconds):
            control.should_training_stop = control.should_evaluate = control.should_save = True

    def state(self) -> dict[str, Any]:
        spent = self.spent + time.monotonic() - self.since
        return {"args": {"seconds": self.seconds, "spent": spent}, "attributes": {}}


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: the Trainer writes its own state last."""
    found = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found.append((state["global_step"], str(checkpoint)))
    return max(found)[1] if found else None
