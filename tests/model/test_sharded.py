"""FSDP2: a model whose frozen base and trained parts are sharded over two processes trains as in one."""

from pathlib import Path

from tests.processes import run_together

SCRIPT = """
import copy, sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM

from cora import CoRAConfig, CoRAModel
from cora.collaborative import CollaborativeEmbeddings

torch.manual_seed(0)
config = AutoConfig.for_model(
    "llama", vocab_size=101, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)
base = AutoModelForCausalLM.from_config(config)
vectors = CollaborativeEmbeddings(range(8), range(9), torch.randn(8, 6), torch.randn(9, 6))
settings = CoRAConfig(r=4, hidden_size=16, dropout=0.0, generator_dropout=0.0, answer_ids=(5, 6))
model = CoRAModel(base, settings, vectors).train()
ids, labels, rows = torch.randint(7, 100, (8, 11)), (torch.arange(8) % 3 > 0).float(), torch.arange(8)

def steps(model, chosen):
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    losses = []
    for _ in range(4):
        loss = model(ids[chosen], None, rows[chosen], rows[chosen], labels[chosen]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)

start = {name: one.clone() for name, one in model.state_dict().items()}
whole = steps(model, slice(None))
trained = {name: one.clone() for name, one in model.state_dict().items()}
assert whole[-1] < whole[0]
model.load_state_dict(start)

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
for layer in base.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
weights = dict(base.named_parameters())
assert all(one.to_local().shape[0] < one.shape[0] for name, one in weights.items() if one.dim() == 2)
each = len(ids) // dist.get_world_size()
losses = steps(model, slice(dist.get_rank() * each, (dist.get_rank() + 1) * each))
dist.all_reduce(losses)
torch.testing.assert_close(losses / dist.get_world_size(), whole, rtol=2e-5, atol=1e-6)
for name, one in model.state_dict().items():
    torch.testing.assert_close(one.full_tensor(), trained[name], rtol=1e-4, atol=1e-6, msg=name)
model.save_pretrained(sys.argv[1])
again = CoRAModel.from_pretrained(sys.argv[1], AutoModelForCausalLM.from_config(config))
for name, one in again.state_dict().items():
    torch.testing.assert_close(one, trained[name], rtol=1e-4, atol=1e-6, msg=name)
"""


def test_two_processes_with_a_shard_each_are_one(tmp_path: Path) -> None:
    run_together(SCRIPT, str(tmp_path))
