"""The benchmarks: wrong results get no speed, competitors take turns, files and pages say what was measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import assert_close

import triton_rankloss as rankloss

sys.path.append(str(Path(__file__).parents[1]))
from bench import gpu_run
from bench.__main__ import judge, main
from bench.accuracy import RedCheckError, check, errors
from bench.cases import Case
from bench.peers import OURS, Peer
from bench.peers.registry import peers_of, truth_of
from bench.report import exponent, ranks, share, table
from bench.results_file import Row
from bench.training import Training
from bench.turns import quartiles, ratio, take_turns
from bench.workloads import Made, Workload

ROOT = Path(__file__).parents[1]
SMALL = Workload("small", (60, 8), 9, "hard", labels=True)


def test_positives_and_negatives_are_compared_apart():
    truth = (torch.tensor(1.0).double(), torch.tensor([-1.0, 1e-6]).double())
    groups = [torch.tensor([True, False]), torch.tensor([False, True])]
    found = errors((torch.tensor(1.0), torch.tensor([-1.0, 2e-6])), truth, groups)
    assert found["error_gradient"] == pytest.approx(1, rel=1e-3)
    with pytest.raises(RedCheckError):
        check(found, torch.float32, exact=True)


@pytest.mark.parametrize("wrong", [(torch.nan, 1.0), (1.0, torch.nan)])
def test_nan_is_an_error_beyond_all_bounds(wrong):
    truth = torch.tensor(1.0).double(), torch.ones(4).double()
    found = truth[0] * wrong[0], truth[1] * torch.tensor([1, wrong[1], 1, 1])
    with pytest.raises(RedCheckError):
        check(errors(found, truth, [slice(0, 2), slice(2, 4)]), torch.float32, exact=False)


def test_what_is_wrong_or_cannot_run_gets_no_speed():
    def broken(leaf, given):
        raise MemoryError("too large")

    right = truth_of("ap")
    wrong = Peer("wrong", lambda leaf, given: 2 * right(leaf, given))
    peers = [Peer(OURS, right), wrong, Peer("broken", broken)]
    case = Case("ap", SMALL, peers, budget=0)
    assert case.turns.keys() == case.found.keys() == {OURS}
    assert len(case.turns[OURS]) >= 5
    assert case.found[OURS]["extra_memory"] >= case.inputs[0].leaf.nbytes
    for peer, reason in zip(peers[1:], ("not the loss", "too large"), strict=True):
        with pytest.raises(RedCheckError, match=reason):
            case.benchmark(None, peer)


def test_competitors_take_turns():
    order = []
    seconds = take_turns({name: lambda turn, name=name: order.append((turn, name)) for name in "abc"}, budget=0.0)
    assert [turn for turn, _ in order] == list(range(len(order)))
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"a": 5, "b": 5, "c": 5}
    names = [name for _, name in order]
    changes = [name for last, name in zip(["", *names], names, strict=False) if name != last]
    # Once each to see who is fast, then five rounds; the one that began a round ends the next.
    assert "".join(changes) == "abc" + "abc" + "bca" + "cab" + "abc" + "bca"


def row(seconds, **info):
    return Row(("ap", "case", OURS), seconds, info)


def test_ratios_are_made_round_by_round_and_exponents_of_two_places():
    assert ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == [2, 2, 2]
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == [2, 3, 4]
    assert exponent(row([3.0] * 3, at=1.0), row([300.0] * 3, at=10.0)) == pytest.approx(2)


def test_a_change_within_the_spread_is_none():
    assert judge(row([1.0, 1.01, 1.02]), row([2.0, 2.01, 2.02]), 1.1) == "slower"
    assert judge(row([2.0, 2.01, 2.02]), row([1.0, 1.01, 1.02]), 1.1) == "faster"
    assert judge(row([1.0, 1.01, 1.02]), row([1.03, 1.04, 1.05]), 1.1) == ""
    assert judge(row([1.0, 1.5, 4.0]), row([1.2, 2.0, 3.0]), 1.1) == ""


def result_file(path, factor=1.0):
    machine = {
        "machine": "m",
        "device": "d",
        "torch_threads": 1,
        "cores": 2,
        "torch": "t",
        "triton": "t",
        "python": "p",
    }
    rows = []
    for peer, seconds in ((OURS, 1.0 * factor), ("loop", 0.5)):
        info = {
            "loss": "ap", "workload": "million-init", "peer": peer, "logits": 10, "positives": 2, "relevant": 8,
            "gradient_bytes": 40, "floor": 0.1, "extra_memory": 80, "error_gradient": 1e-8, "ratio": [seconds] * 3,
        }  # fmt: skip
        rows.append({"extra_info": info, "stats": {"q1": seconds, "median": 1.01 * seconds, "q3": 1.02 * seconds}})
    content = {"machine_info": machine, "commit_info": {"id": "c" * 40, "dirty": False}, "benchmarks": rows}
    path.write_text(json.dumps(content))
    return str(path)


def test_report(tmp_path):
    pytest.importorskip("matplotlib")
    file = result_file(tmp_path / "bench.json")
    for source, name in ((file, "of a file"), (str(tmp_path), "of a folder")):
        folder = tmp_path / name
        assert main(["report", source, "--out", str(folder)]) == 0
        page = (folder / "README.md").read_text()
        assert "| AP Loss, million-init | 10 | 2 | 8 | 1.01e+03 | 0.10 | 0.5 [0.5, 0.5] |" in page
        assert "- AP Loss, million-init: loop 0.5 [0.5, 0.5]" in page
        assert "## Scaling" not in page
        assert (folder / "ranking.png").stat().st_size > 0
        assert (folder / "bench.json").exists()


def test_compare(tmp_path, capsys):
    before, after = result_file(tmp_path / "a.json"), result_file(tmp_path / "b.json", 2.0)
    assert main(["compare", before, before]) == 0
    assert main(["compare", before, after]) == 1
    assert "| ap million-init ours | 1.01e+03 [1e+03, 1.02e+03] |" in capsys.readouterr().out
    assert main(["compare", after, before]) == 0
    (tmp_path / "c.json").write_text("{}")
    assert main(["compare", before, str(tmp_path / "c.json")]) == 2


def test_the_suites_make_what_the_page_is_made_of(tmp_path):
    pytest.importorskip("pytest_benchmark")
    pytest.importorskip("matplotlib")
    file = tmp_path / "bench.json"
    tests = [("ranking", "fewer-hard"), ("scaling", "relevant=0.6"), ("scaling", "relevant=0.99")]
    tests = [
        f"bench/test_{suite}.py::test_{suite}[ap-{case}-{peer}]" for suite, case in tests for peer in (OURS, "loop")
    ]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--quick", f"--benchmark-json={file}", *tests]
    # pytest-benchmark measures nothing where it believes itself in a worker of pytest-xdist.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    assert main(["report", str(file), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text()
    assert "A quick run at tiny sizes" in page
    for section in ("Ranking losses", "Accuracy", "Peak extra memory", "Scaling"):
        assert f"## {section}" in page
    assert "| AP Loss, fewer-hard | 4,000 | 40 |" in page
    assert (tmp_path / "scaling.png").stat().st_size > 0


class Network(torch.nn.Linear):
    """Logits [2, 20, 3] and deltas [2, 20, 4] from images [2, 20, 5]."""

    def forward(self, images):
        return super().forward(images).split([3, 4], dim=-1)


@pytest.fixture
def toy():
    labels = torch.full((2, 20), 3)
    labels[:, :4] = 1
    return Training(Network(5, 7), torch.randn(2, 20, 5), labels)


def test_a_step_has_the_gradient_of_the_loss_and_leaves_the_weights(toy):
    before = {name: value.clone() for name, value in toy.network.named_parameters()}
    logits, deltas = toy.network(toy.images)
    whole = rankloss.ap_loss(logits, toy.given["labels"]) + deltas[:, :4].abs().mean()
    expected = dict(zip(before, torch.autograd.grad(whole, list(toy.network.parameters())), strict=True))
    seen = {}
    toy.optimizer.register_step_pre_hook(
        lambda *_: seen.update({name: value.grad.clone() for name, value in toy.network.named_parameters()})
    )
    toy.run(lambda leaf, given: rankloss.ap_loss(leaf, given["labels"]))
    for name, value in toy.network.named_parameters():
        assert_close(seen[name], expected[name])
        assert torch.equal(value, before[name])


def test_a_wrong_loss_is_not_timed_in_a_training(toy):
    wrong = Peer("wrong", lambda leaf, given: 2 * rankloss.ap_loss(leaf, given["labels"]))
    ours, loop, *_ = peers_of("ap")
    case = Case("ap", Made("toy", lambda seed: toy), [ours, loop, wrong], budget=0)
    assert case.turns.keys() == {OURS, "loop"}
    assert "not the loss it should be" in case.failures["wrong"]
    assert case.seconds_of_loss(ours) > 0


def test_tables_of_training_and_ranks():
    assert share(row([0.03, 0.04, 0.05], loss_seconds=0.01)) == "10 in 40, 25%"
    assert "| AP Loss, case | 10 in 40, 25% |" in table([row([0.03, 0.04, 0.05], loss_seconds=0.01)], share)
    of_ranks = ranks([row([0.002, 0.003, 0.004], at=8, positives=80, without_group=0.002)])
    assert "| 8 | 80 | 3 | 2 |" in of_ranks


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_make_gpu_runs_what_there_is(device, tmp_path):
    for step in gpu_run.steps(tmp_path, device):
        for argument in (argument.removeprefix("--ignore=") for argument in step.command):
            if argument.startswith(("tests/", "bench/")):
                assert (ROOT / argument).exists(), argument
