"""What guesses the next item by a small network trained on the sequences themselves: GRU4Rec and SASRec."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from cora.sequences.baselines import Scores

_DIM = 64
_LONGEST = 50  # items of a history that are read
_DROPOUT = 0.3
_INITIAL_STD = 0.02
_BATCH = 32  # sequences of a step
_LEARNING_RATE = 1e-3
_EPOCHS, _PATIENCE = 60, 5
_PADDING = -1


class GRUReader(nn.Module):
    """h_t = W·GRU(x_1 … x_t). Source: Hidasi et al., Session-based recommendations with recurrent neural networks,
    ICLR 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(_DIM, 2 * _DIM, batch_first=True)
        self.out = nn.Linear(2 * _DIM, _DIM)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.gru(x)[0])
        return found


class AttentionReader(nn.Module):
    """h_t = norm(blocks(x + position))_t, two causal blocks, pre-norm. Source: Kang and McAuley, Self-attentive
    sequential recommendation, ICDM 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(_INITIAL_STD * torch.randn(_LONGEST, _DIM))
        block = nn.TransformerEncoderLayer(
            _DIM, 2, 2 * _DIM, _DROPOUT, functional.gelu, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 2, nn.LayerNorm(_DIM), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        found: Tensor = self.blocks(x + self.position[: x.shape[1]], mask=later, is_causal=True)
        return found


# name -> what reads a sequence of vectors [b, t, d] into one of hidden states of that shape, none of which sees later
READERS: dict[str, Callable[[], nn.Module]] = {"GRU4Rec": GRUReader, "SASRec": AttentionReader}


class NextItemNet(nn.Module):
    """score of item j behind x_1 … x_t = <h_t, q_j>, h = reader(dropout(q_x)): items are read and scored by one table
    q [items, d]."""

    def __init__(self, items: int, reader: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.q = nn.Parameter(_INITIAL_STD * torch.randn(items, _DIM))
        self.dropout = nn.Dropout(_DROPOUT)
        self.reader = reader()

    def forward(self, read: Tensor) -> Tensor:
        """h [b, t, d] of items int64 [b, t], oldest first, padded on the right by -1."""
        found: Tensor = self.reader(self.dropout(self.q[read.clamp(min=0)]))
        return found

    def loss(self, sequences: Sequence[np.ndarray]) -> Tensor:
        """The mean cross-entropy among all items of every item of the sequences but their first."""
        padded = _padded(sequences)
        read, targets = padded[:, :-1], padded[:, 1:]
        asked = targets != _PADDING
        return functional.cross_entropy(self(read)[asked] @ self.q.t(), targets[asked])

    @torch.no_grad()
    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """fp32 [n, items]; of a history the newest 50 items are read. Behind an empty one all items score alike."""
        self.eval()
        found = np.zeros((len(histories), len(self.q)), dtype=np.float32)
        some = [row for row, one in enumerate(histories) if len(one)]
        for start in range(0, len(some), 8 * _BATCH):
            rows = some[start : start + 8 * _BATCH]
            read = _padded([histories[row][-_LONGEST:] for row in rows])
            last = self(read)[torch.arange(len(rows)), (read != _PADDING).sum(1) - 1]
            found[rows] = (last @ self.q.t()).numpy()
        return found


def trained(
    name: str, training: Sequence[np.ndarray], items: int, validate: Callable[[Scores], float], seed: int = 0
) -> Scores:
    """The network of that name in READERS, trained on the sequences by Adam, as it was after its best epoch.

    training: int64 arrays of rows of the items, oldest first. validate: how good scores are, the higher the better;
    training ends after five epochs without a better one, or sixty. Deterministic given the seed; the global random
    state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, random = NextItemNet(items, READERS[name]), np.random.default_rng(seed)
        optimizer = torch.optim.Adam(net.parameters(), lr=_LEARNING_RATE)
        best, best_state, since = -np.inf, copy.deepcopy(net.state_dict()), 0
        for _ in (bar := tqdm(range(_EPOCHS), desc=name, unit="epoch", delay=2, leave=False)):
            net.train()
            sequences = _cut(training, random)
            for rows in torch.randperm(len(sequences)).split(_BATCH) if sequences else ():
                optimizer.zero_grad()
                net.loss([sequences[row] for row in rows.tolist()]).backward()
                optimizer.step()
            since += 1
            if (now := validate(net.scores)) > best:
                best, best_state, since = now, copy.deepcopy(net.state_dict()), 0
            bar.set_postfix(valid=f"{best:.4f}", refresh=False)
            if since == _PATIENCE:
                break
        net.load_state_dict(best_state)
    return net.scores


def _cut(training: Sequence[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
    """Sequences of 2 to 51 items: of each user's, cut at other places every time, so that every item but the first is
    a target once; the last item of one is the first of the next."""
    found = []
    for items in training:
        last = len(items) - 1
        first = int(random.integers(1, _LONGEST + 1)) if last > _LONGEST else _LONGEST
        cuts = [0, *range(first, last, _LONGEST), last] if last > 0 else []
        found += [items[start : stop + 1] for start, stop in zip(cuts, cuts[1:], strict=False)]
    return found


def _padded(sequences: Sequence[np.ndarray]) -> Tensor:
    """int64 [b, t], padded on the right by -1."""
    tensors = [torch.from_numpy(np.asarray(one, dtype=np.int64)) for one in sequences]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=_PADDING)
