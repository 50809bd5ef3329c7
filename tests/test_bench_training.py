"""The benchmarks of whole training steps: a step is a step, and its table says what share of it the loss takes."""

import sys
from pathlib import Path

import pytest
import torch

import triton_rankloss as trl

sys.path.append(str(Path(__file__).parents[1]))
from bench.duel import examine
from bench.gate import RedCheckError
from bench.peers.peer import Peer
from bench.peers.registry import RANKING, truth_of
from bench.report import ranks, training
from bench.results_file import Results, Row
from bench.suite import groups_of
from bench.training import Training


class Network(torch.nn.Module):
    """Logits [2, 20, 3] and deltas [2, 20, 4] from images [2, 20, 5]."""

    def __init__(self):
        super().__init__()
        self.logits, self.deltas = torch.nn.Linear(5, 3), torch.nn.Linear(5, 4)

    def forward(self, images):
        return self.logits(images), self.deltas(images)


@pytest.fixture
def toy():
    torch.manual_seed(0)
    labels = torch.full((2, 20), 3)
    labels[:, :4] = 1
    return Training(Network(), torch.randn(2, 20, 5), labels)


def test_a_step_has_the_gradient_of_the_loss_and_leaves_the_weights(toy):
    before = {name: value.clone() for name, value in toy.network.named_parameters()}
    logits, deltas = toy.network(toy.images)
    whole = trl.ap_loss(logits, toy.labels) + deltas[:, :4].abs().mean()
    expected = dict(zip(before, torch.autograd.grad(whole, list(toy.network.parameters())), strict=True))
    seen = {}
    toy.optimizer.register_step_pre_hook(
        lambda *_: seen.update({name: value.grad.clone() for name, value in toy.network.named_parameters()})
    )
    sample = toy.run(lambda leaf, problem: trl.ap_loss(leaf, problem.labels))
    for name, value in toy.network.named_parameters():
        torch.testing.assert_close(seen[name], expected[name])
        assert torch.equal(value, before[name])
    assert 0 < sample.loss < sample.step == sample.loss + sample.rest


def test_a_wrong_loss_is_not_timed(toy):
    wrong = Peer("wrong", lambda leaf, problem: 2 * trl.ap_loss(leaf, problem.labels))
    found = examine([*RANKING["ap"][:2], wrong], toy.problem, truth_of("ap"), groups_of(toy.problem), toy.run)
    assert [result.failure is None for result in found.values()] == [True, True, False]
    assert RedCheckError.__name__ not in found["wrong"].failure
    assert "not the loss it should be" in found["wrong"].failure


def test_the_table_has_the_share_of_the_loss():
    info = {"axis": "training", "images": 4, "logits": 1000, "positives": 7, "extra_memory": 2_000_000}
    rows = [
        Row("ap", "toy", "ours", "loss", [[0.01], [0.01]], info),
        Row("ap", "toy", "ours", "step", [[0.04], [0.04]], info),
    ]
    table = training(Results({}, {}, rows))[-1]
    assert "| toy, AP Loss | ours | 10 | 40 | 25% | 100 | 2 |" in table


def test_the_table_of_ranks():
    info = {"axis": "ranks", "at": 8, "positives": 80, "without_group": 0.002, "bytes": 1234, "logits": 250}
    table = ranks(Results({}, {}, [Row("ap", "ranks=8", "ours", "both", [[0.003]], info)]))[-1]
    assert "| 8 | 80 | 3 | 2 | 1,234 | 1,000 |" in table
