"""The packed copies that the CPU kernels keep of a patched model's weights: when they are kept, renewed and freed."""

import copy
import gc
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

import cora
from cora_kernels.backends import cpu
from cora_kernels.backends.weight_packs import clear_weight_packs, weight_pack_bytes

IDS = torch.randint(3, 101, (3, 7), generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.skipif(cpu.availability() is not None, reason=f"cpu: {cpu.availability()}")


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def test_the_patch_keeps_packed_copies_of_the_weights_it_froze(
    base: PreTrainedModel, targets: Any, make_deltas: Any
) -> None:
    clear_weight_packs()
    patch = cora.patch(base, targets(base))
    patch.set_deltas(make_deltas(patch, 3))
    with torch.no_grad():
        before = logits(base)
        held = weight_pack_bytes()
        assert held > 0
        assert torch.equal(logits(base), before) and weight_pack_bytes() == held
        twin = copy.deepcopy(base)
        assert torch.equal(logits(twin), before) and weight_pack_bytes() == 2 * held
        del twin
        gc.collect()
        assert weight_pack_bytes() == held
    patch.remove()
    assert weight_pack_bytes() == 0


def test_changes_of_frozen_weights_are_seen(base: PreTrainedModel, targets: Any, make_deltas: Any) -> None:
    """Dense ones by themselves, a few elements written behind torch's back after refresh()."""
    patch = cora.patch(base, targets(base))
    patch.set_deltas(make_deltas(patch, 3))

    def fresh() -> Tensor:
        clear_weight_packs()
        return logits(base)

    with torch.no_grad():
        logits(base)
        state = {name: value + 0.01 for name, value in base.state_dict().items()}
        base.load_state_dict(state)
        assert torch.equal(logits(base), fresh())
        for layer in patch.layers.values():  # an average of weights, copied in
            layer.weight.data.lerp_(torch.ones(layer.weight.shape), 0.01)
        assert torch.equal(logits(base), fresh())
        for layer in patch.layers.values():  # offloaded and brought back elsewhere
            layer.weight.data = layer.weight.data * 1.01
        assert torch.equal(logits(base), fresh())
        for layer in patch.layers.values():
            layer.weight.data[1].zero_()
        patch.refresh()
        assert torch.equal(logits(base), fresh())


def test_nothing_is_kept_of_a_weight_put_in_place_of_another(
    base: PreTrainedModel, targets: Any, make_deltas: Any
) -> None:
    clear_weight_packs()
    patch = cora.patch(base, targets(base))
    deltas = make_deltas(patch, 3)
    patch.set_deltas(deltas)
    with torch.no_grad():
        logits(base)
        held = weight_pack_bytes()
        for layer in patch.layers.values():
            layer.weight = nn.Parameter(layer.weight * 2, requires_grad=False)
        changed = logits(base)
        assert weight_pack_bytes() == held
        patch.refresh()
        assert weight_pack_bytes() == 0
        assert torch.equal(logits(base), changed)
        assert weight_pack_bytes() == 0
        patch.remove()
        patch = cora.patch(base, targets(base))
        patch.set_deltas(deltas)
        assert torch.equal(logits(base), changed) and weight_pack_bytes() == held
    patch.remove()
    assert weight_pack_bytes() == 0


def test_weights_gathered_anew_in_every_step_leave_nothing(
    base: PreTrainedModel, targets: Any, make_deltas: Any
) -> None:
    """FSDP2 frees what it gathered and gathers into the same tensors again, of which no version tells."""
    base.requires_grad_(False)
    patch = cora.patch(base, targets(base))
    patch.set_deltas(make_deltas(patch, 3))
    expected = logits(base).detach()
    held = weight_pack_bytes()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(base, mesh=init_device_mesh("cpu", (1,)))
        for _ in range(3):
            torch.testing.assert_close(logits(base), expected)
            assert weight_pack_bytes() <= held
        patch.refresh()
        assert weight_pack_bytes() == 0
        base.reshard()
        for parameter in base.parameters():
            parameter.detach().to_local().mul_(2.0)
        changed = logits(base).detach()
        assert not torch.allclose(changed, expected)
        base.reshard()
        for parameter in base.parameters():
            parameter.detach().to_local().mul_(0.5)
        torch.testing.assert_close(logits(base).detach(), expected)
        assert weight_pack_bytes() == 0
    finally:
        dist.destroy_process_group()
