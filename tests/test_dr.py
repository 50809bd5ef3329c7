"""DR Loss: the authors' vectors, literal loops over the formula, cases worked out by hand."""

import math

import pytest
import torch
from cases import assert_close, golden, load
from hypothesis import given, settings, strategies as st
from torch.nn.functional import one_hot

import triton_rankloss as trl
from triton_rankloss.reference import dr as reference

NUM_CLASSES = 3
NEG_LAMBDA = 0.1 / math.log(3.5)


def gradient_of(logits, targets, loss=trl.dr_loss, **options):
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, targets, **options)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.fixture
def batch(device):
    """Logits [4, 20, 3] in float64 and labels [4, 20]; image 2 has no positive, image 3 no candidate."""
    logits = 2 * torch.randn(4, 20, NUM_CLASSES, dtype=torch.float64) - 1
    labels = torch.randint(-1, NUM_CLASSES + 1, (4, 20))
    labels[2] = NUM_CLASSES
    labels[3] = -1
    return logits.to(device), labels.to(device)


def to_dense(labels):
    dense = one_hot(labels.clamp(min=0), NUM_CLASSES + 1)[..., :NUM_CLASSES]
    return dense.masked_fill((labels < 0).unsqueeze(-1), -1)


def literal(logits, targets, margin=0.5, pos_lambda=1.0, neg_lambda=NEG_LAMBDA, L=6.0, tau=4.0):
    """(loss, gradient of each logit) of flat lists, in Python floats."""
    p = [1 / (1 + math.exp(-x)) for x in logits]
    positives = [i for i, t in enumerate(targets) if t > 0]
    negatives = [j for j, t in enumerate(targets) if t == 0]
    if not positives and not negatives:
        return 0.0, [0.0] * len(p)
    q_positive = {i: math.exp(-p[i] / pos_lambda) for i in positives}
    q_negative = {j: math.exp(p[j] / neg_lambda) for j in negatives}
    q_positive = {i: q / sum(q_positive.values()) for i, q in q_positive.items()}
    q_negative = {j: q / sum(q_negative.values()) for j, q in q_negative.items()}
    mean_positive = sum(q * p[i] for i, q in q_positive.items()) if positives else 1.0
    mean_negative = sum(q * p[j] for j, q in q_negative.items())
    excess = L * (mean_negative - mean_positive + margin)
    slope = tau / (1 + math.exp(-excess))
    gradient = [0.0] * len(p)
    for i, q in q_positive.items():
        gradient[i] = -slope * q * (1 - (p[i] - mean_positive) / pos_lambda) * p[i] * (1 - p[i])
    for j, q in q_negative.items():
        gradient[j] = slope * q * (1 + (p[j] - mean_negative) / neg_lambda) * p[j] * (1 - p[j])
    return tau / L * math.log(1 + math.exp(excess)), gradient


@pytest.mark.parametrize("path", golden("dr"), ids=lambda path: path.stem)
@pytest.mark.parametrize("form", ["labels", "dense"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(path, form, dtype, device):
    case = load(path)
    logits, labels = case["logits"].to(device, dtype), case["labels"].to(device)
    targets = torch.where(labels > 0, labels - 1, torch.where(labels == 0, logits.shape[1], -1))
    if form == "dense":
        targets = one_hot(targets.clamp(min=0), logits.shape[1] + 1)[:, :-1].masked_fill((labels < 0)[:, None], -1)
    options = {name: case[name].item() for name in ("margin", "pos_lambda", "neg_lambda", "L", "tau")}
    loss, gradient = gradient_of(logits, targets, **options)
    assert_close(loss, case["loss"], torch.float32)
    # In float32 the rounding of p, 6e-8, grows by 1 / neg_lambda = 20 in exp(p / neg_lambda).
    assert_close(gradient, case["grad_logits"], torch.float32, times=1 if dtype == torch.float64 else 2)


@pytest.mark.parametrize(
    "options",
    [{}, {"margin": 0.0}, {"pos_lambda": 0.2, "neg_lambda": 1.0}, {"L": 20.0, "tau": 1.0}, {"neg_lambda": 0.002}],
    ids=str,
)
def test_literal_loops(options, batch):
    logits, labels = batch
    for targets in (labels, labels.to(torch.int8), to_dense(labels), to_dense(labels).float()):
        expected, expected_gradient = literal(logits.flatten().tolist(), to_dense(labels).flatten().tolist(), **options)
        loss, gradient = gradient_of(logits, targets, **options)
        assert_close(loss, expected)
        assert_close(gradient.flatten(), expected_gradient, times=10)


def test_flat_logits(batch):
    logits, labels = batch
    expected, expected_gradient = gradient_of(logits, labels)
    loss, gradient = gradient_of(logits.flatten(), to_dense(labels).flatten())
    assert_close(loss, expected, times=0.01)
    assert_close(gradient, expected_gradient.flatten(), times=0.01)


def test_per_image(batch):
    logits, labels = batch
    for targets in (labels, to_dense(labels)):
        loss, gradient = gradient_of(logits, targets, per_image=True)
        images = [literal(x.flatten().tolist(), y.flatten().tolist()) for x, y in zip(logits, to_dense(labels))]
        assert_close(loss, sum(value for value, _ in images) / 3)
        assert_close(3 * gradient.flatten(1), [image for _, image in images], times=10)
        assert not gradient[3].any()


def test_by_hand(device):
    # lambda+ = lambda- = 1. One positive with p = 1/2: pbar+ = 1/2. Two negatives with p = 1/2: pbar- = 1/2. L = 2,
    # tau = 2, margin 1/2: loss = log(1 + e). Slope 2 e / (1 + e), times q (1 + 0) times p (1 - p) = 1/4.
    options = {"margin": 0.5, "pos_lambda": 1.0, "neg_lambda": 1.0, "L": 2.0, "tau": 2.0}
    logits, targets = torch.zeros(4, dtype=torch.float64, device=device), torch.tensor([1, 0, 0, -1], device=device)
    loss, gradient = gradient_of(logits, targets, **options)
    slope = 2 * math.e / (1 + math.e)
    assert loss.item() == pytest.approx(math.log(1 + math.e))
    assert gradient.tolist() == pytest.approx([-slope / 4, slope / 8, slope / 8, 0])
    # Probabilities 0 and 1 of two negatives: q = 1 / (1 + e), e / (1 + e) and pbar- = e / (1 + e), without positives
    # pbar+ = 1: loss = log(1 + exp(2 (e / (1 + e) - 1/2))).
    logits = torch.tensor([-1e4, 1e4], dtype=torch.float64, device=device)
    loss, _ = gradient_of(logits, torch.zeros(2, device=device), **options)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2 * (math.e / (1 + math.e) - 0.5))))


def test_one_kind_alone(device):
    logits = torch.randn(6, dtype=torch.float64, device=device)
    loss, gradient = gradient_of(logits, torch.zeros(6, device=device))
    expected, expected_gradient = literal(logits.tolist(), [0] * 6)
    assert_close(loss, expected)
    assert_close(gradient, expected_gradient)
    # Without negatives pbar- = 0: one positive of p = 1/2 gives 4/6 log(1 + exp(6 (0 - 1/2 + 1/2))) = 2/3 log 2.
    loss, gradient = gradient_of(torch.zeros(1, device=device), torch.ones(1, device=device))
    assert_close(loss, 2 / 3 * math.log(2))
    assert_close(gradient, [-4 / 2 / 4])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 20))
def test_properties(seed, num_positives, num_negatives):
    """Order and repetition do not count, margin and L bound the loss, and pushing apart never makes it worse."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_positives + num_negatives, dtype=torch.float64, generator=generator)
    targets = torch.tensor([1] * num_positives + [0] * num_negatives)
    loss = trl.dr_loss(logits, targets)
    order = torch.randperm(logits.numel(), generator=generator)
    assert_close(trl.dr_loss(logits[order], targets[order]), loss)
    assert_close(trl.dr_loss(logits.repeat(3), targets.repeat(3)), loss)
    # pbar- - pbar+ lies in [-1, 1]: tau / L log(1 + exp(L (+-1 + margin)))
    assert (
        4 / 6 * math.log1p(math.exp(6 * -0.5)) - 1e-12 <= loss.item() <= 4 / 6 * math.log1p(math.exp(6 * 1.5)) + 1e-12
    )
    best = torch.where(targets > 0, 40.0, -40.0).double()
    assert trl.dr_loss(best, targets).item() == pytest.approx(4 / 6 * math.log1p(math.exp(-3)), rel=1e-9)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("parameters", [(0.5, 1.0, 0.1, 6.0, 4.0), (0.2, 0.05, 2.0, 20.0, 1.0)])
def test_autograd_of_the_formula(parameters, per_image, batch):
    logits, labels = batch
    options = dict(zip(("margin", "pos_lambda", "neg_lambda", "L", "tau"), parameters))
    for targets in (labels, to_dense(labels)):
        leaf = logits.clone().requires_grad_()
        scopes = zip(leaf, to_dense(labels)) if per_image else [(leaf, to_dense(labels))]
        losses = [reference.dr_loss(x[dense > 0], x[dense == 0], *parameters) for x, dense in scopes]
        expected = sum(losses) / (3 if per_image else 1)  # one of the images has no candidate
        (expected_gradient,) = torch.autograd.grad(0.7 * expected, leaf)
        loss, gradient = gradient_of(logits, targets, lambda *arguments, **options: 0.7 * trl.dr_loss(
            *arguments, **options), per_image=per_image, **options)  # fmt: skip
        assert_close(loss, 0.7 * expected)
        assert_close(gradient, expected_gradient, times=10)


@pytest.mark.parametrize("k", [-5.0, 20.0])
def test_sums_of_parts_add_up(k):
    p = torch.rand(11, dtype=torch.float64)
    parts = torch.stack([reference.tilted_sums(part, k) for part in (p[:3], p[:0], p[3:10], p[10:])], -1)
    whole = reference.add_tilted_sums(parts, k)
    assert_close(reference.tilted_mean(whole, 0.0), ((k * p).softmax(0) * p).sum(), times=0.01)
    assert_close(whole, reference.tilted_sums(p, k), times=0.01, each=True)
    assert reference.tilted_mean(reference.add_tilted_sums(parts[:, 1:2], k), 0.5) == 0.5
