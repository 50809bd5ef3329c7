"""The benchmarks: peers are what they claim to be, wrong results get no speed, files say what was measured."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from cases import KINDS, assert_close, dense, scores

import triton_rankloss as trl

sys.path.append(str(Path(__file__).parents[1]))
from bench.__main__ import main
from bench.compare import judge
from bench.duel import duel
from bench.gate import RedCheckError, check, errors
from bench.peers import bucketed, compiled, loop, pointwise, vectorized
from bench.peers.peer import OURS, Peer
from bench.peers.registry import POINTWISE, peers_of, truth_of
from bench.results_file import Row, exponent, quartiles
from bench.timing import Replay, Sample, take_turns
from bench.workloads import CPU, BoxWorkload, Workload, num_relevant

EXACT = {"loop": loop, "vectorized": vectorized}
BUCKETS = {"sorted": bucketed.Buckets, "searched": bucketed.SearchedBuckets}


def case(kind, num_positives=13, num_negatives=200):
    """Logits in float32, dense targets with IoUs, and errors, of which none are equal."""
    logits, targets = dense(*scores(kind, num_positives, num_negatives), torch.rand(num_positives).double() * 0.9 + 0.1)
    targets[torch.randperm(targets.numel())[:5]] = -1
    return logits.float(), targets.float(), torch.rand(int((targets > 0).sum()))


def result(losses, logits):
    """Losses, and the gradient of the first."""
    losses = losses if isinstance(losses, tuple) else (losses,)
    (gradient,) = torch.autograd.grad(sum(losses), logits)
    return torch.stack([loss.detach().double() for loss in losses]), gradient


def all_losses(module, logits, targets, errors, **options):
    return {
        "ap": result(module.ap_loss(logits, targets, **options), logits),
        "alrp": result(module.alrp_loss(logits, targets, errors, **options), logits),
        "rank_sort": result(module.rank_sort_loss(logits, targets, **options), logits),
    }


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "huge"])  # float32 loses digits at thousands
@pytest.mark.parametrize("peer", EXACT)
def test_exact_peers(peer, kind, delta):
    logits, targets, errors = case(kind)
    logits.requires_grad_()
    expected = all_losses(trl, logits, targets, errors, delta=delta)
    for loss, (losses, gradient) in all_losses(EXACT[peer], logits, targets, errors, delta=delta).items():
        if (peer, kind, loss) == ("loop", "ties", "alrp"):
            losses, expected_losses = losses[:1], expected[loss][0][:1]  # its localization takes ties in any order
        else:
            expected_losses = expected[loss][0]
        assert losses.tolist() == pytest.approx(expected_losses.tolist(), rel=1e-5, abs=1e-6), loss
        assert_close(gradient, expected[loss][1], times=10)


@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("make_buckets", BUCKETS.values(), ids=BUCKETS)
def test_buckets_are_exact_for_the_hard_step(make_buckets, kind):
    logits, targets, _ = case(kind)
    logits.requires_grad_()
    expected = result(trl.ap_loss(logits, targets, delta=0, interpolate=False), logits)
    losses, gradient = result(bucketed.ap_loss(logits, targets, 0, make_buckets), logits)
    assert losses.tolist() == pytest.approx(expected[0].tolist(), rel=1e-5)
    assert_close(gradient, expected[1], times=10)
    expected = result(trl.rank_sort_loss(logits, targets, delta=0), logits)
    losses, gradient = result(bucketed.rank_sort_loss(logits, targets, 0, make_buckets=make_buckets), logits)
    assert losses.tolist() == pytest.approx(expected[0].tolist(), rel=1e-5, abs=1e-6)
    assert_close(gradient, expected[1], times=10)


@pytest.mark.parametrize("make_buckets", BUCKETS.values(), ids=BUCKETS)
def test_buckets_are_approximate_for_a_soft_step(make_buckets):
    logits, targets, errors = case("random", 20, 2000)
    logits.requires_grad_()
    exact = {
        "ap": result(trl.ap_loss(logits, targets, interpolate=False), logits),
        "alrp": result(trl.alrp_loss(logits, targets, errors), logits),
        "rank_sort": result(trl.rank_sort_loss(logits, targets), logits),
    }
    approximate = {
        "ap": result(bucketed.ap_loss(logits, targets, make_buckets=make_buckets), logits),
        "alrp": result(bucketed.alrp_loss(logits, targets, errors, make_buckets=make_buckets), logits),
        "rank_sort": result(bucketed.rank_sort_loss(logits, targets, make_buckets=make_buckets), logits),
    }
    for loss, (losses, gradient) in approximate.items():
        at_negatives = (targets == 0).double()
        difference = ((gradient - exact[loss][1]) * at_negatives).abs().sum()
        error = (difference / (exact[loss][1] * at_negatives).abs().sum()).item()
        assert 1e-4 < error < 0.2, loss
        assert losses.tolist() == pytest.approx(exact[loss][0].tolist(), rel=0.05), loss


def test_both_kinds_of_buckets_are_the_same():
    positives, negatives = (x.float() for x in scores("random", 11, 300))
    sorted_, searched = bucketed.Buckets(positives, negatives), bucketed.SearchedBuckets(positives, negatives)
    assert sorted_.sizes.tolist() == searched.sizes.tolist()
    assert sorted_.means.tolist() == pytest.approx(searched.means.tolist(), abs=1e-5)
    shares = torch.rand(12)
    assert sorted_.to_negatives(shares).tolist() == searched.to_negatives(shares).tolist()


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_compiled_products_before_compilation(delta):
    positives, negatives = (x.float() for x in scores("random", 11, 300))
    weights = torch.rand(11)
    expected = vectorized.BLOCKS.count(positives, negatives, delta)
    assert compiled.count(positives, negatives, delta).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    expected = vectorized.BLOCKS.transport(positives, negatives, weights, delta)
    actual = compiled.transport(positives, negatives, weights, delta)
    assert actual.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)


SMALL = Workload("small", (60, 8), 9, "hard", labels=True)


@pytest.mark.parametrize("loss", POINTWISE)
def test_formulas_are_our_losses(loss):
    problem = (BoxWorkload("boxes", 50) if loss == "giou" else SMALL).problem()
    by_name = {peer.name: peer for peer in peers_of(loss)}
    leaf = problem.leaf.requires_grad_()
    expected = result(by_name[OURS].loss(leaf, problem), leaf)
    losses, gradient = result(by_name["formula"].loss(leaf, problem), leaf)
    assert losses.tolist() == pytest.approx(expected[0].tolist(), rel=1e-5)
    assert_close(gradient, expected[1], times=10)


def test_the_yardstick_is_the_balanced_focal_loss_without_weights():
    problem = SMALL.problem()
    expected = trl.iou_balanced_focal_loss(problem.logits, problem.labels, problem.iou_per_anchor, eta=0)
    focal = pointwise.focal(problem.logits, problem.labels, problem.divisor)
    assert focal.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["million-trained", "fewer-ties", "proposals"])
def test_workloads_are_drawn_alike_every_time(name):
    workload = next(workload for workload in CPU if workload.name == name)
    first = workload.problem()
    assert torch.equal(first.logits, workload.problem().logits)
    assert not torch.equal(first.logits, workload.problem(1).logits)
    assert first.logits.dtype == workload.dtype
    assert int((first.dense() > 0).sum()) == workload.num_positives == first.iou.numel()
    negatives = first.logits.numel() - workload.num_positives
    if workload.scores == "init":
        assert num_relevant(first) == negatives
    if workload.relevant is not None:
        assert num_relevant(first) == pytest.approx(workload.relevant * negatives, rel=0.1)


def test_both_forms_of_targets_say_the_same():
    problem = SMALL.problem()
    assert problem.targets.shape == problem.labels.shape
    assert torch.equal(problem.dense().reshape(-1).nonzero().squeeze(1), problem.positions)
    assert torch.equal(problem.dense(problem.iou).reshape(-1)[problem.positions], problem.iou)


def test_the_gate_compares_positives_and_negatives_apart():
    truth = (torch.tensor(1.0).double(), torch.tensor([-1.0, 1e-6]).double())
    groups = [torch.tensor([True, False]), torch.tensor([False, True])]
    found = errors((torch.tensor(1.0), torch.tensor([-1.0, 2e-6])), truth, groups)
    assert found.gradient == pytest.approx(1, rel=1e-3)
    with pytest.raises(RedCheckError):
        check(found, torch.float32, exact=True)
    nan = errors((torch.tensor(torch.nan), truth[1]), truth, groups)
    with pytest.raises(RedCheckError):
        check(nan, torch.float32, exact=False)


def test_what_is_wrong_or_cannot_run_gets_no_speed():
    def broken(leaf, problem):
        raise MemoryError("too large")

    right = truth_of("ap")
    peers = [
        Peer("right", right),
        Peer("wrong", lambda leaf, problem: 2 * right(leaf, problem)),
        Peer("broken", broken),
    ]
    problem = SMALL.problem()
    results = duel(peers, [problem], right, [problem.dense() > 0], 0.0)
    assert results["right"].failure is None
    assert len(results["right"].durations("both")) >= 5
    assert results["right"].extra_memory >= problem.logits.nbytes
    assert "not the loss" in results["wrong"].failure
    assert "too large" in results["broken"].failure
    assert results["wrong"].durations("both") == results["broken"].durations("both") == []


def test_competitors_take_turns():
    order = []

    def called(name):
        def loss(leaf, problem):
            order.append(name)
            return leaf.sum()

        return loss

    samples, load = take_turns({"a": called("a"), "b": called("b")}, [SMALL.problem()], 0.0, time.process_time)
    assert len(samples["a"]) == len(samples["b"]) >= 5
    assert {"a", "b"} == set(order[-2:])
    assert load >= 0


def test_replay_is_a_clock_of_the_given_durations():
    replay = Replay()
    assert replay.load([3.0, 4.0]) == 2
    start = replay.time()
    replay.run()
    middle = replay.time()
    replay.run()
    assert (middle - start, replay.time() - middle) == (3.0, 4.0)
    assert Sample(1.0, 2.0).both == 3.0


def row(seconds):
    return Row("ap", "case", OURS, "both", [[value] for value in seconds], {})


def test_rows():
    ours, other = row([1.0, 2.0, 4.0]), row([2.0, 4.0, 8.0])
    assert other.over(ours) == (2.0, 2.0, 2.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert exponent([(1.0, 3.0), (10.0, 300.0)]) == pytest.approx(2)


def test_a_change_within_the_spread_is_none():
    assert judge(row([1.0, 1.01, 1.02]), row([2.0, 2.01, 2.02]), 1.1) == "slower"
    assert judge(row([2.0, 2.01, 2.02]), row([1.0, 1.01, 1.02]), 1.1) == "faster"
    assert judge(row([1.0, 1.01, 1.02]), row([1.03, 1.04, 1.05]), 1.1) == ""
    assert judge(row([1.0, 1.5, 4.0]), row([1.2, 2.0, 3.0]), 1.1) == ""


def result_file(path, factor=1.0):
    rows = []
    for peer, seconds in ((OURS, 1.0 * factor), ("loop", 12.0)):
        info = {
            "loss": "ap", "workload": "million-init", "peer": peer, "phase": "both", "repeats": 1, "logits": 10,
            "positives": 2, "relevant": 8, "gradient_bytes": 40, "floor": 0.1, "extra_memory": 80, "load": 0.0,
            "error_loss": 0.0, "error_gradient": 1e-8, "error_largest": 1e-8,
        }  # fmt: skip
        rows.append({"extra_info": info, "stats": {"data": [seconds, 1.01 * seconds, 1.02 * seconds]}})
    machine = {"machine": "m", "device": "d", "clock": "wall", "torch_threads": 1, "cores": 2}
    machine |= {"torch": "t", "triton": "t", "python": "p"}
    content = {"machine_info": machine, "commit_info": {"id": "c" * 40, "changed_since": []}, "benchmarks": rows}
    path.write_text(json.dumps(content))
    return str(path)


def test_report(tmp_path):
    pytest.importorskip("matplotlib")
    file = result_file(tmp_path / "a.json")
    assert main(["report", file, "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| 10x faster than loop | 12 [12, 12] | met |" in page
    assert (tmp_path / "out" / "ranking.png").stat().st_size > 0
    assert (tmp_path / "out" / "a.json").exists()


def test_compare(tmp_path, capsys):
    before, after = result_file(tmp_path / "a.json"), result_file(tmp_path / "b.json", 2.0)
    assert main(["compare", before, before]) == 0
    assert main(["compare", before, after]) == 1
    assert "slower" in capsys.readouterr().out
    assert main(["compare", after, before]) == 0
    (tmp_path / "c.json").write_text("{}")
    assert main(["compare", before, str(tmp_path / "c.json")]) == 2
