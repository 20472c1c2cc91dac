"""Patched models in transformers' Trainer, in accelerate and in every way of `generate`."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

import cora

LENGTH, ROWS, R = 10, 16, 3
GREEDY: dict[str, Any] = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)


class Hypernetwork(nn.Module):
    """One of one's own: a language model with an A for each sample, of a vector of its own, and B for all."""

    def __init__(self, base: PreTrainedModel, targets: tuple[str, ...]) -> None:
        super().__init__()
        self.patch = cora.patch(base, targets)
        base.requires_grad_(False)
        self.base = base
        width = base.config.hidden_size
        self.make_a = nn.Linear(4, width * R)
        sizes = {name: layer.out_features for name, layer in self.patch.layers.items()}
        self.b = nn.ParameterDict({name.replace(".", "/"): torch.randn(R, n).mul_(0.05) for name, n in sizes.items()})

    def set(self, vectors: Tensor) -> None:
        a = self.make_a(vectors).unflatten(1, (-1, R))
        self.patch.set_deltas({name: (a, self.b[name.replace(".", "/")], 2.0) for name in self.patch.layers})

    def forward(self, input_ids: Tensor, vectors: Tensor) -> dict[str, Tensor]:
        self.set(vectors)
        output = self.base(input_ids=input_ids, labels=input_ids, use_cache=False)
        return {"loss": output.loss, "logits": output.logits}

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        self.base.gradient_checkpointing_enable(dict(use_reentrant=False))

    activation_checkpointing_enable = gradient_checkpointing_enable


class Rows(Dataset[dict[str, Tensor]]):
    """The same few prompts, each with a vector."""

    def __init__(self) -> None:
        made = torch.Generator().manual_seed(3)
        self.ids = torch.randint(3, 101, (ROWS, LENGTH), generator=made)
        self.vectors = torch.randn(ROWS, 4, generator=made)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[row], "vectors": self.vectors[row]}


@pytest.fixture
def build(make_base: Any, targets: Any) -> Callable[..., Hypernetwork]:
    def make(**changes: Any) -> Hypernetwork:
        torch.manual_seed(5)
        base = make_base("llama", **changes)
        return Hypernetwork(base, targets(base))

    return make


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its settings for the whole process."""
    states = (AcceleratorState, GradientState, PartialState)
    for state in states:
        state._reset_state()
    yield
    for state in states:
        state._reset_state()


def losses(model: Hypernetwork, folder: Any, **arguments: Any) -> list[float]:
    """Those of a few steps of the Trainer, which takes the rows in their order."""
    chosen: dict[str, Any] = dict(
        max_steps=4, per_device_train_batch_size=8, learning_rate=0.02, logging_steps=1, use_cpu=True, report_to=[],
        disable_tqdm=True, save_strategy="no", train_sampling_strategy="sequential", remove_unused_columns=False,
        lr_scheduler_type="constant", max_grad_norm=0.0,
    )  # fmt: skip
    trainer = Trainer(model, TrainingArguments(str(folder), **{**chosen, **arguments}), train_dataset=Rows())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainer_with_bf16_accumulation_and_checkpointing_learns_the_same(
    build: Callable[..., Hypernetwork], tmp_path: Any, fresh_accelerate: None
) -> None:
    plain = losses(build(), tmp_path)
    assert plain[-1] < plain[0] - 0.05
    usual = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, gradient_checkpointing=True)
    assert losses(build(), tmp_path, **usual) == pytest.approx(plain, rel=1e-4)
    half = losses(build(), tmp_path, bf16=True, **usual)
    assert half == pytest.approx(plain, rel=2e-2) and half != pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_trainer_compiles(build: Callable[..., Hypernetwork], tmp_path: Any, fresh_accelerate: None) -> None:
    plain = losses(build(), tmp_path)
    assert losses(build(), tmp_path, torch_compile=True) == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_accumulates_the_gradients_of_the_whole_batch(
    build: Callable[..., Hypernetwork], fresh_accelerate: None, precision: str
) -> None:
    whole = build().train()
    rows = Rows()
    whole(rows.ids, rows.vectors)["loss"].backward()
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    model = build().train()
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.0)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, ROWS // 2))
    for batch in loader:
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**batch)["loss"])
            assert accelerator.sync_gradients == (batch["input_ids"][0] == rows.ids[ROWS // 2]).all()
            optimizer.step()
    tolerance = 1e-4 if precision == "no" else 3e-2
    for (name, one), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        if one.requires_grad:
            assert one.grad is not None and other.grad is not None
            assert (one.grad - other.grad).norm() < tolerance * other.grad.norm(), name


@pytest.fixture
def merged(make_base: Any, build: Callable[..., Hypernetwork]) -> Callable[[Tensor], PreTrainedModel]:
    """merged(vector): an unpatched model with the deltas of that vector in its weights."""

    @torch.no_grad()
    def make(vector: Tensor) -> PreTrainedModel:
        model = build()
        model.set(vector[None])
        a = model.make_a(vector[None]).unflatten(1, (-1, R))[0]
        b = {name: model.b[name.replace(".", "/")] for name in model.patch.layers}
        model.patch.remove()
        for name, one in b.items():
            model.base.get_submodule(name).weight.data += 2.0 * (a @ one).T
        return model.base

    return make


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static cache": dict(cache_implementation="static"),
    "no cache": dict(use_cache=False),
    "sampling": dict(do_sample=True, temperature=0.7, top_k=20, top_p=0.9),
    "beams": dict(num_beams=3),
    "sampled beams": dict(num_beams=3, do_sample=True),
    "no repetition": dict(repetition_penalty=1.3, no_repeat_ngram_size=2),
}


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_generate_is_that_of_merged_weights(
    way: str, build: Callable[..., Hypernetwork], merged: Callable[[Tensor], PreTrainedModel]
) -> None:
    rows, options = Rows(), GREEDY | WAYS[way]
    copies = options.get("num_beams", 1)
    model = build()
    for row in range(2):
        model.set(rows.vectors[row : row + 1].repeat_interleave(copies, 0))
        torch.manual_seed(row)
        found = model.base.generate(rows.ids[row : row + 1], **options)
        alone = merged(rows.vectors[row])
        torch.manual_seed(row)
        expected = alone.generate(rows.ids[row : row + 1], **options)
        assert torch.equal(found, expected) and found.shape[1] > LENGTH


@torch.no_grad()
@pytest.mark.parametrize("way", ["greedy", "static cache", "no cache", "no repetition"])
def test_a_batch_generates_as_its_samples_do_alone(way: str, build: Callable[..., Hypernetwork]) -> None:
    rows, options, model = Rows(), GREEDY | WAYS[way], build()
    model.set(rows.vectors[:4])
    together = model.base.generate(rows.ids[:4], **options)
    for row in range(4):
        model.set(rows.vectors[row : row + 1])
        assert torch.equal(model.base.generate(rows.ids[row : row + 1], **options)[0], together[row])
    assert len({tuple(one) for one in together[:, LENGTH:].tolist()}) > 1


@torch.no_grad()
def test_assisted_generation_gives_what_the_model_alone_gives(
    build: Callable[..., Hypernetwork], make_base: Any
) -> None:
    rows, model = Rows(), build()
    model.set(rows.vectors[:1])
    alone = model.base.generate(rows.ids[:1], **GREEDY)
    for assistant in (dict(assistant_model=make_base("llama")), dict(prompt_lookup_num_tokens=2)):
        assert torch.equal(model.base.generate(rows.ids[:1], **GREEDY, **assistant), alone)
