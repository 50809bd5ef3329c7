"""DR Loss: the authors' vectors, literal loops over the formula, cases worked out by hand."""

import math

import pytest
import torch
from cases import DTYPES, TOLERANCE, golden, load, relative_error
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
    assert loss.item() == pytest.approx(case["loss"].item(), rel=1e-6)
    # In float32 the rounding of p, 6e-8, grows by 1 / neg_lambda = 20 in exp(p / neg_lambda).
    assert relative_error(gradient, case["grad_logits"]) < (1e-6 if dtype == torch.float64 else TOLERANCE[dtype])


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
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        assert relative_error(gradient.flatten(), torch.tensor(expected_gradient, dtype=torch.float64)) < 1e-11


def test_flat_logits(batch):
    logits, labels = batch
    expected, expected_gradient = gradient_of(logits, labels)
    loss, gradient = gradient_of(logits.flatten(), to_dense(labels).flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
    assert relative_error(gradient, expected_gradient.flatten()) < 1e-14


def test_per_image(batch):
    logits, labels = batch
    for targets in (labels, to_dense(labels)):
        loss, gradient = gradient_of(logits, targets, per_image=True)
        images = [literal(x.flatten().tolist(), y.flatten().tolist()) for x, y in zip(logits, to_dense(labels))]
        assert loss.item() == pytest.approx(sum(value for value, _ in images) / 3, rel=1e-12)
        expected = torch.tensor([image for _, image in images], dtype=torch.float64).view(logits.shape) / 3
        assert relative_error(gradient, expected) < 1e-11
        assert gradient[3].abs().max() == 0
    single, single_gradient = gradient_of(logits[:1], labels[:1], per_image=True)
    alone, alone_gradient = gradient_of(logits[0], labels[0])
    assert single.item() == pytest.approx(alone.item(), rel=1e-14)
    assert relative_error(single_gradient[0], alone_gradient) < 1e-14


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


def test_edge_cases(device):
    logits = torch.randn(6, dtype=torch.float64, device=device)
    no_positives, gradient = gradient_of(logits, torch.zeros(6, device=device))
    expected, expected_gradient = literal(logits.tolist(), [0] * 6)
    assert no_positives.item() == pytest.approx(expected, rel=1e-12)
    assert relative_error(gradient, torch.tensor(expected_gradient, dtype=torch.float64)) < 1e-12
    # Without negatives pbar- = 0: one positive of p = 1/2 gives 4/6 log(1 + exp(6 (0 - 1/2 + 1/2))) = 2/3 log 2.
    loss, gradient = gradient_of(torch.zeros(1, device=device), torch.ones(1, device=device))
    assert loss.item() == pytest.approx(2 / 3 * math.log(2))
    assert gradient.item() == pytest.approx(-4 / 2 / 4)
    labels = torch.full((2, 5), -1, device=device)
    for shape in ((2, 5, 3), (2, 0, 3), (0, 5, 3), (2, 5, 0)):
        for per_image in (False, True):
            loss, gradient = gradient_of(torch.zeros(shape, device=device), labels[: shape[0], : shape[1]],
                                         per_image=per_image)  # fmt: skip
            assert loss == 0
            assert gradient.shape == shape
            assert not gradient.any()
    loss, gradient = gradient_of(torch.zeros(0, device=device), torch.zeros(0, device=device))
    assert loss == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 20))
def test_properties(seed, num_positives, num_negatives):
    """Order and repetition do not count, margin and L bound the loss, and pushing apart never makes it worse."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_positives + num_negatives, dtype=torch.float64, generator=generator)
    targets = torch.tensor([1] * num_positives + [0] * num_negatives)
    loss = trl.dr_loss(logits, targets)
    order = torch.randperm(logits.numel(), generator=generator)
    assert trl.dr_loss(logits[order], targets[order]).item() == pytest.approx(loss.item(), rel=1e-12)
    assert trl.dr_loss(logits.repeat(3), targets.repeat(3)).item() == pytest.approx(loss.item(), rel=1e-12)
    # pbar- - pbar+ lies in [-1, 1]: tau / L log(1 + exp(L (+-1 + margin)))
    assert (
        4 / 6 * math.log1p(math.exp(6 * -0.5)) - 1e-12 <= loss.item() <= 4 / 6 * math.log1p(math.exp(6 * 1.5)) + 1e-12
    )
    best = torch.where(targets > 0, 40.0, -40.0).double()
    assert trl.dr_loss(best, targets).item() == pytest.approx(4 / 6 * math.log1p(math.exp(-3)), rel=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, batch):
    logits, labels = batch
    rounded = logits.to(dtype)
    for per_image in (False, True):
        loss, gradient = gradient_of(rounded, labels, per_image=per_image)
        expected, expected_gradient = gradient_of(rounded.double(), labels, per_image=per_image)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert gradient.dtype == dtype
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert relative_error(gradient, expected_gradient) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_logits(dtype, device):
    logits = torch.tensor([1e4, -1e4, torch.inf, -torch.inf, 0, 0], dtype=dtype, device=device)
    for targets in ([1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]):
        loss, gradient = gradient_of(logits, torch.tensor(targets, device=device))
        saturated = logits.double().clamp(-100, 100).tolist()
        expected, expected_gradient = literal(saturated, targets)
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        assert relative_error(gradient, torch.tensor(expected_gradient, dtype=torch.float64)) < TOLERANCE[dtype]


def test_gradient_is_scaled_before_it_is_rounded_to_float16(batch):
    logits, labels = batch
    leaf = logits.half().requires_grad_()
    (2.0**-20 * (2.0**16 * trl.dr_loss(leaf, labels))).mul(2.0**4).backward()
    _, expected = gradient_of(logits.half().double(), labels)
    assert relative_error(leaf.grad, expected) < TOLERANCE[torch.float16]


def test_nan(batch):
    logits, labels = batch
    of_ignored = logits.masked_fill((labels < 0).unsqueeze(-1), torch.nan)
    for per_image in (False, True):
        loss, gradient = gradient_of(of_ignored, labels, per_image=per_image)
        expected, expected_gradient = gradient_of(logits, labels, per_image=per_image)
        assert loss == expected
        assert torch.equal(gradient, expected_gradient)
    for anchors in (labels == NUM_CLASSES, labels == 0):
        poisoned = logits.masked_fill(anchors.unsqueeze(-1), torch.nan)
        loss, gradient = gradient_of(poisoned, labels)
        assert loss.isnan()
        assert gradient[anchors].isnan().all()


def test_strided_inputs(batch):
    logits, labels = batch
    expected, expected_gradient = gradient_of(logits, labels, per_image=True)
    strided = logits.transpose(1, 2).contiguous().transpose(1, 2)
    for other in (strided, logits.repeat(1, 1, 2)[..., :NUM_CLASSES]):
        assert not other.is_contiguous()
        loss, gradient = gradient_of(other, labels.t().contiguous().t(), per_image=True)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
        assert relative_error(gradient, expected_gradient) < 1e-14


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
        assert loss.item() == pytest.approx(0.7 * expected.item(), rel=1e-12)
        assert relative_error(gradient, expected_gradient) < 1e-11


@pytest.mark.parametrize("k", [-5.0, 20.0])
def test_sums_of_parts_add_up(k):
    p = torch.rand(11, dtype=torch.float64)
    parts = torch.stack([reference.tilted_sums(part, k) for part in (p[:3], p[:0], p[3:10], p[10:])], -1)
    whole = reference.add_tilted_sums(parts, k)
    assert reference.tilted_mean(whole, 0.0).item() == pytest.approx(((k * p).softmax(0) * p).sum().item(), rel=1e-14)
    torch.testing.assert_close(whole, reference.tilted_sums(p, k), rtol=1e-14, atol=0)
    assert reference.tilted_mean(reference.add_tilted_sums(parts[:, 1:2], k), 0.5) == 0.5


LOGITS, LABELS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((LOGITS.long(), LABELS), {}, TypeError, "logits must have a floating-point dtype; got torch.int64"),
        ((LOGITS, LABELS.float()), {}, TypeError, "targets given as labels must have an integer dtype"),
        ((LOGITS, LABELS[:3]), {}, ValueError, r"targets must have the shape of logits, .*; got shape \(3,\)"),
        ((LOGITS, LABELS), {"per_image": True}, ValueError, "per_image=True needs images as the first dimension"),
        ((LOGITS, LABELS), {"per_image": 1}, TypeError, "per_image must be a bool; got int"),
        ((LOGITS, LABELS), {"margin": -0.1}, ValueError, "margin must be >= 0 and finite; got -0.1"),
        ((LOGITS, LABELS), {"pos_lambda": 0}, ValueError, "pos_lambda must be > 0 and finite; got 0"),
        ((LOGITS, LABELS), {"neg_lambda": math.inf}, ValueError, "neg_lambda must be > 0 and finite; got inf"),
        ((LOGITS, LABELS), {"L": 0.0}, ValueError, "L must be > 0 and finite; got 0.0"),
        ((LOGITS, LABELS), {"tau": "4"}, TypeError, "tau must be a number; got str"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        trl.dr_loss(*arguments, **options)
    if options and options != {"per_image": True}:
        with pytest.raises(error, match=message):
            trl.DRLoss(**options)


def test_module(batch):
    logits, labels = batch
    options = {"margin": 0.25, "pos_lambda": 2.0, "neg_lambda": 0.5, "L": 3.0, "tau": 2.0, "per_image": True}
    module = trl.DRLoss(**options)
    assert repr(module) == "DRLoss(margin=0.25, pos_lambda=2, neg_lambda=0.5, L=3, tau=2, per_image=True)"
    assert module(logits, labels) == trl.dr_loss(logits, labels, **options)
    assert trl.DRLoss()(logits, labels) == trl.dr_loss(logits, labels)


def test_double_backward(batch):
    logits, labels = batch
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(trl.dr_loss(leaf, labels), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives of this loss are not implemented"):
        gradient.sum().backward()


@pytest.mark.parametrize("per_image", [False, True])
def test_compile_and_autocast(per_image, batch):
    logits, labels = batch
    expected, expected_gradient = gradient_of(logits, labels, per_image=per_image)
    compiled = torch.compile(trl.dr_loss, fullgraph=True, backend="aot_eager")
    with torch.autocast(logits.device.type, dtype=torch.bfloat16):
        for loss in (compiled, trl.dr_loss):
            value, gradient = gradient_of(logits, labels, loss, per_image=per_image)
            assert value.item() == pytest.approx(expected.item(), rel=1e-12)
            assert relative_error(gradient, expected_gradient) < 1e-12


@pytest.mark.parametrize("per_image", [False, True])
def test_operators(per_image, batch):
    logits, labels = batch
    ops, leaf = torch.ops.triton_rankloss, logits.clone().requires_grad_()
    torch.library.opcheck(ops.dr_loss, (leaf, labels, 0.5, 1.0, 0.1, 6.0, 4.0, per_image, None))
    state = torch.rand(2, 3, 4 if per_image else 1, dtype=torch.float64, device=logits.device)
    arguments = logits.half(), to_dense(labels), state, state[0, 0, 0], 1.0, 0.1
    torch.library.opcheck(ops.dr_loss_backward, arguments, test_utils=("test_schema", "test_faketensor"))
