"""GRU4Rec and SASRec: none sees what is later, every item is a target once, the best epoch is kept, rules are found."""

import numpy as np
import pytest
import torch

from cora.sequences import READERS, neural
from cora.sequences.neural import NextItemNet, _cut, trained

ITEMS = 12


@pytest.fixture
def net(name: str) -> NextItemNet:
    torch.manual_seed(0)
    net = NextItemNet(ITEMS, READERS[name]).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_a_state_is_that_of_the_items_up_to_it(net: NextItemNet) -> None:
    items = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    whole = net(items)
    for length in range(1, 6):
        torch.testing.assert_close(net(items[:, :length]), whole[:, :length])
    changed = net(torch.tensor([[3, 1, 4, 8, 5]]))
    assert (changed[0, 3:] - whole[0, 3:]).abs().min(1).values.max() > 1e-4  # what is read does count


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_the_loss_is_the_mean_over_every_item_but_the_first(net: NextItemNet) -> None:
    sequences = [np.array([3, 1, 4, 1, 5]), np.array([9, 2]), np.array([6, 5, 3])]
    losses = []
    for one in sequences:
        for stop in range(1, len(one)):
            logits = torch.from_numpy(net.scores([one[:stop]])[0])
            losses.append(logits.logsumexp(0) - logits[one[stop]])
    torch.testing.assert_close(net.loss(sequences), torch.stack(losses).mean())


@pytest.mark.parametrize("name", READERS)
def test_the_newest_fifty_items_are_read_and_an_empty_history_prefers_nothing(net: NextItemNet) -> None:
    random = np.random.default_rng(0)
    long = random.integers(0, ITEMS, 80)
    scores = net.scores([long, np.zeros(0, dtype=np.int64), long[-50:], long[-49:]])
    assert scores.shape == (4, ITEMS) and np.ptp(scores[1]) == 0
    np.testing.assert_allclose(scores[0], scores[2], rtol=1e-5)
    assert np.abs(scores[0] - scores[3]).max() > 1e-4


def test_every_item_but_the_first_is_a_target_once_in_sequences_cut_elsewhere_each_time() -> None:
    random = np.random.default_rng(0)
    training = [np.arange(length) for length in (0, 1, 2, 50, 51, 52, 101, 102, 230)]
    cuts = set()
    for _ in range(20):
        found = _cut(training, random)
        assert all(2 <= len(one) <= 51 for one in found)
        of_users = [one for items in training for one in items[1:].tolist()]
        assert [item for one in found for item in one[1:].tolist()] == of_users
        cuts.add(tuple(len(one) for one in found))
    assert len(cuts) > 15


@pytest.mark.parametrize("name", READERS)
def test_a_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item is followed by the next number: all are as popular as each other, so that tells nothing of it."""
    monkeypatch.setattr(neural, "_LEARNING_RATE", 0.01)
    training = [(start + np.arange(6)) % 6 for start in range(48)]
    epochs = iter(range(100))
    scores = trained(name, training, 6, lambda scores: float(next(epochs)))  # no epoch is worse than another
    histories = [np.array([2]), np.array([3, 4, 5]), np.array([0, 1, 2, 3])]
    assert scores(histories).argmax(1).tolist() == [3, 0, 4]


@pytest.mark.parametrize("name", READERS)
def test_the_best_epoch_is_kept_and_five_worse_ones_end_it(name: str) -> None:
    training = [np.array([0, 1, 2, 3]), np.array([2, 1]), np.zeros(0, dtype=np.int64)]
    seen = []

    def validate(scores: object) -> float:
        assert callable(scores)
        seen.append(scores([np.array([0, 1])]))
        return [0.1, 0.5, 0.2, 0.5, 0.4, 0.3, 0.1, 0.9][len(seen) - 1]

    state = torch.get_rng_state()
    scores = trained(name, training, 5, validate, seed=3)
    assert len(seen) == 7  # the second is the best, five follow
    assert np.array_equal(scores([np.array([0, 1])]), seen[1]) and not np.array_equal(seen[1], seen[6])
    assert torch.equal(torch.get_rng_state(), state)
    first, seen[:] = seen[1], []
    assert np.array_equal(trained(name, training, 5, validate, seed=3)([np.array([0, 1])]), first)


@pytest.mark.parametrize("name", READERS)
def test_nothing_to_train_on_is_no_error(name: str) -> None:
    scores = trained(name, [np.array([1]), np.zeros(0, dtype=np.int64)], 3, lambda scores: 0.0)
    assert np.isfinite(scores([np.array([1, 2])])).all()
