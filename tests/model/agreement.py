"""What must hold of every method's model, asserted in one place."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cora_kernels import use_backend

Batch = tuple[Tensor, Tensor]


@torch.no_grad()
def assert_it_starts_as_the_base_model(model: Any, batch: Batch, users: Tensor, items: Tensor) -> None:
    """Exactly, where the delta is added by torch's own operators: one that is zero adds zero."""
    with use_backend("chain"):
        scores = model.score(*batch, users, items)
        assert torch.equal(scores, model.score(*batch, users, items, adapted=False))


@torch.no_grad()
def assert_users_and_items_count(model: Any, batch: Batch, users: Tensor, items: Tensor) -> None:
    scores = model.score(*batch, users, items)
    assert not torch.allclose(scores, model.score(*batch, users.roll(1), items), atol=1e-4)
    assert not torch.allclose(scores, model.score(*batch, users, items.roll(1)), atol=1e-4)


def assert_packed_is_chained(model: Any, run: Callable[[], Any]) -> None:
    """One forward and backward on the native kernels and one on torch's operators: logits and every gradient."""
    found = []
    for backend in (None, "chain"):
        model.zero_grad()
        with use_backend(backend):
            out = run()
            out.loss.backward()
        found.append((out.logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    (logits, gradients), (chained, expected) = found
    torch.testing.assert_close(logits, chained, atol=5e-5, rtol=1e-4)
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-4 * expected[name].norm(), name
