"""What every ranking loss promises whatever its formula: forms, scopes, dtypes, edge cases, errors, integration."""

import pytest
import torch
from cases import DTYPES, TOLERANCE, relative_error
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import triton_rankloss as trl

NUM_CLASSES = 3


def ap(logits, targets, values, **options):
    return trl.ap_loss(logits, targets, **options)


def alrp(logits, targets, values, **options):
    return sum(trl.alrp_loss(logits, targets, values, **options))


def rank_sort(logits, targets, values, **options):
    return sum(trl.rank_sort_loss(logits, targets, values, **options))


LOSSES = (ap, alrp, rank_sort)
every_loss = pytest.mark.parametrize("loss", LOSSES)


def values_for(logits: Tensor, targets: Tensor) -> Tensor:
    """One value in [0, 1) for each positive: a localization error, or an IoU."""
    if targets.shape == logits.shape:
        num_positives = int((targets > 0).sum())
    else:
        num_positives = int(((targets >= 0) & (targets < logits.shape[-1])).sum())
    return ((torch.arange(num_positives, device=logits.device) * 0.37) % 1).to(torch.float64)


def gradient_of(loss, logits, targets, values=None, **options):
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, targets, values_for(logits, targets) if values is None else values, **options)
    value.backward()
    return value.detach(), leaf.grad


@pytest.fixture
def batch(device):
    """Logits [4, 40, 3] in float64 and labels [4, 40]; the last image has no positive."""
    logits = torch.randn(4, 40, NUM_CLASSES, dtype=torch.float64, device=device)
    labels = torch.randint(-1, NUM_CLASSES + 1, (4, 40), device=device)
    labels[torch.rand(4, 40, device=device) < 0.6] = NUM_CLASSES
    labels[3] = NUM_CLASSES
    return logits, labels


def to_dense(labels: Tensor) -> Tensor:
    one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), NUM_CLASSES + 1)[..., :NUM_CLASSES]
    return one_hot.masked_fill((labels < 0).unsqueeze(-1), -1)


@every_loss
def test_labels_and_dense_targets_agree(loss, batch):
    logits, labels = batch
    for per_image in (False, True):
        value, gradient = gradient_of(loss, logits, labels, per_image=per_image)
        for dtype in (torch.int64, torch.float32, torch.int8):
            dense_value, dense_gradient = gradient_of(loss, logits, to_dense(labels).to(dtype), per_image=per_image)
            assert dense_value == value
            assert torch.equal(dense_gradient, gradient)
    assert gradient[labels < 0].abs().max() == 0


@every_loss
def test_per_image_is_the_mean_over_images_with_a_positive(loss, batch):
    logits, labels = batch
    values = values_for(logits, labels)
    value, gradient = gradient_of(loss, logits, labels, values, per_image=True)
    sizes = ((labels >= 0) & (labels < NUM_CLASSES)).sum(1).tolist()
    alone = [gradient_of(loss, *image) for image in zip(logits, labels, values.split(sizes), strict=True)]
    assert value.item() == pytest.approx(sum(v.item() for v, _ in alone[:3]) / 3, rel=1e-12)
    assert relative_error(gradient, torch.stack([g for _, g in alone]) / 3) < 1e-12
    assert alone[3][0] == 0
    assert gradient[3].abs().max() == 0


@every_loss
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(loss, dtype, batch):
    logits, labels = batch
    rounded = logits.to(dtype)
    value, gradient = gradient_of(loss, rounded, labels)
    expected, expected_gradient = gradient_of(loss, rounded.double(), labels)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(gradient, expected_gradient) < TOLERANCE[dtype]


@every_loss
def test_float16_with_many_false_positives(loss, device, interpreted):
    # 200 k negatives above every positive: in half precision their number overflows to infinity (and 70 k do too).
    num_negatives = 70_000 if interpreted else 200_000
    logits = torch.cat([torch.randn(20), 8 + torch.randn(num_negatives)]).to(device, torch.float16)
    targets = torch.zeros(num_negatives + 20, device=device)
    targets[:20] = 1
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, targets, values_for(logits, targets))
    (2.0**16 * value).backward()  # the scale that mixed precision starts from
    assert value.isfinite()
    assert leaf.grad.isfinite().all()
    assert leaf.grad[20:].double().sum().item() == pytest.approx(-leaf.grad[:20].double().sum().item(), rel=1e-2)


@every_loss
@pytest.mark.parametrize(
    "targets",
    [torch.zeros(6), -torch.ones(6), torch.zeros(0)],
    ids=["no positives", "all ignored", "empty"],
)
def test_without_positives_the_loss_is_zero_and_connected(loss, targets, device):
    logits = torch.randn(targets.shape, device=device, requires_grad=True)
    for per_image in (False, True):
        shape = (2, -1) if per_image else (-1,)
        value = loss(logits.view(shape), targets.to(device).view(shape), logits.new_zeros(0), per_image=per_image)
        assert value.item() == 0
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.equal(gradient, torch.zeros_like(logits))


@every_loss
def test_a_perfect_ranking_without_negatives(loss, device):
    logits = torch.tensor([3.0, 3.0, -1.0], device=device)
    targets = torch.tensor([1, 1, -1], device=device)
    value, gradient = gradient_of(loss, logits, targets, torch.zeros(2, device=device))
    assert value.item() == 0
    assert gradient.abs().max().item() == 0


@every_loss
def test_one_positive(loss, device):
    # One negative at the positive itself: H = 1/2. AP and aLRP: 1 - 1 / 1.5 = 1/3; RS: 0.5 / (0.5 + 0.5) = 1/2.
    logits, targets = torch.tensor([1.0, 1.0], device=device), torch.tensor([1, 0], device=device)
    value, gradient = gradient_of(loss, logits, targets, torch.zeros(1, device=device))
    expected = 1 / 2 if loss is rank_sort else 1 / 3
    assert value.item() == pytest.approx(expected)
    assert gradient.tolist() == pytest.approx([-expected, expected])


@every_loss
@pytest.mark.parametrize("at", [0, 5], ids=["positive", "negative"])
@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_nan_in_nan_out(loss, at, delta, device):
    logits = torch.randn(12, device=device)
    logits[at] = torch.nan
    targets = torch.tensor([1, 1] + [0] * 10, device=device)
    value, gradient = gradient_of(loss, logits, targets, delta=delta)
    assert value.isnan()
    assert gradient.isnan().any()


@every_loss
def test_infinite_logits_count_as_very_large_ones(loss, device):
    logits = torch.tensor([torch.inf, 0.5, -torch.inf, torch.inf, -torch.inf, 0.0], device=device)
    targets = torch.tensor([1, 1, 1, 0, 0, 0], device=device)
    value, gradient = gradient_of(loss, logits, targets)
    large, large_gradient = gradient_of(loss, logits.clamp(-1e5, 1e5), targets)
    assert value.item() == pytest.approx(large.item(), rel=1e-6)
    assert relative_error(gradient, large_gradient) < 1e-6


@every_loss
def test_strided_inputs(loss, batch):
    logits, labels = batch
    expected, expected_gradient = gradient_of(loss, logits, labels)
    for strided in (logits.transpose(1, 2).contiguous().transpose(1, 2), logits.repeat(1, 1, 2)[..., :NUM_CLASSES]):
        assert not strided.is_contiguous()
        value, gradient = gradient_of(loss, strided, labels.t().contiguous().t())
        assert value == expected
        assert torch.equal(gradient, expected_gradient)


@every_loss
def test_bitwise_repeatable(loss, batch):
    logits, labels = batch
    first = gradient_of(loss, logits.float(), labels)
    for _ in range(3):
        again = gradient_of(loss, logits.float(), labels)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


@every_loss
def test_double_backward_is_refused(loss, batch):
    logits, labels = batch
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, labels, values_for(logits, labels)), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="error-driven"):
        gradient.sum().backward()


@every_loss
def test_compile_autocast_and_checkpointing_change_nothing(loss, batch, device):
    logits, labels = batch
    values = values_for(logits, labels)
    expected, expected_gradient = gradient_of(loss, logits, labels)

    def step(x):
        return loss(x, labels, values)

    def bounded(x):
        return loss(x, labels, values, max_positives=500)

    def autocast(x):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return step(x)

    def checkpointed(x):
        return checkpoint(step, x, use_reentrant=False)

    wrappers = [torch.compile(bounded, fullgraph=True), autocast, checkpointed]
    # Releases before 2.11 were not tried; 2.6 refuses outputs whose size is data in a full graph, unless told not to.
    if torch.torch_version.TorchVersion(torch.__version__) >= (2, 11):
        wrappers.append(torch.compile(step, fullgraph=True))
    for wrapped in wrappers:
        leaf = logits.detach().clone().requires_grad_()
        value = wrapped(leaf)
        value.backward()
        assert value.item() == pytest.approx(expected.item(), rel=1e-12)
        assert relative_error(leaf.grad, expected_gradient) < 1e-12


def test_opcheck(batch):
    logits, labels = batch
    leaf = logits.float().requires_grad_()
    values = values_for(logits, labels).float().requires_grad_()
    ops = torch.ops.triton_rankloss
    torch.library.opcheck(ops.ap_loss.default, (leaf, labels, 1.0, True, False, None, None))
    torch.library.opcheck(ops.alrp_loss.default, (leaf, labels, values, 1.0, 1e-5, True, None, None))
    torch.library.opcheck(ops.rank_sort_loss.default, (leaf, labels, values.detach(), 0.5, 1e-10, False, 200, None))


@every_loss
def test_a_bound_on_the_number_of_positives_changes_nothing_unless_it_is_broken(loss, batch):
    logits, labels = batch
    values = values_for(logits, labels)
    for per_image in (False, True):
        expected, expected_gradient = gradient_of(loss, logits, labels, values, per_image=per_image)
        for bound in (values.numel(), 500):
            value, gradient = gradient_of(loss, logits, labels, values, per_image=per_image, max_positives=bound)
            assert value == expected
            assert torch.equal(gradient, expected_gradient)
        value, gradient = gradient_of(loss, logits, labels, values, per_image=per_image, max_positives=3)
        assert value.isnan()
        assert gradient.isnan().any()


BAD_INPUT = [
    (lambda x, t: (x.tolist(), t), {}, TypeError, "logits must be a tensor; got list"),
    (lambda x, t: (x.long(), t), {}, TypeError, "logits must have a floating-point dtype; got torch.int64"),
    (lambda x, t: (x[0, 0], t[0, 0]), {}, ValueError, r"logits must have at least one dimension"),
    (lambda x, t: (x, t.tolist()), {}, TypeError, "targets must be a tensor; got list"),
    (lambda x, t: (x, t[:1]), {}, ValueError, r"targets must have the shape of logits, .* got shape \(1, 3\)"),
    (lambda x, t: (x, t[:, 0].float()), {}, TypeError, "labels must have an integer dtype; got torch.float32"),
    (lambda x, t: (x, t[:, 0].to("meta")), {}, ValueError, "targets must be on the same device.*got meta"),
    (lambda x, t: (x, t), {"delta": -1}, ValueError, "delta must be >= 0 and finite; got -1"),
    (lambda x, t: (x, t), {"delta": float("nan")}, ValueError, "delta must be >= 0 and finite; got nan"),
    (lambda x, t: (x, t), {"delta": "1"}, TypeError, "delta must be a number; got str"),
    (lambda x, t: (x, t[:, 0]), {"per_image": True}, ValueError, "per_image=True needs images"),
    (lambda x, t: (x, t), {"max_positives": 0}, ValueError, "max_positives must be >= 1; got 0"),
    (lambda x, t: (x, t), {"max_positives": 2.5}, TypeError, "max_positives must be an int or None; got float"),
    (lambda x, t: (x, t), {"per_image": 1}, TypeError, "per_image must be a bool; got int"),
]


@every_loss
@pytest.mark.parametrize(("change", "options", "error", "message"), BAD_INPUT, ids=[case[3][:40] for case in BAD_INPUT])
def test_bad_input(loss, change, options, error, message, device):
    logits, targets = torch.randn(4, 3, device=device), torch.zeros(4, 3, dtype=torch.long, device=device)
    with pytest.raises(error, match=message):
        loss(*change(logits, targets), logits.new_zeros(0), **options)


@pytest.mark.parametrize("loss", [alrp, rank_sort])
def test_bad_values_of_the_positives(loss, device):
    logits, labels = torch.randn(4, 3, device=device), torch.tensor([0, 1, 3, 3], device=device)
    name = "localization_errors" if loss is alrp else "iou"
    with pytest.raises(TypeError, match=f"{name} must have a floating-point dtype; got torch.int64"):
        loss(logits, labels, torch.zeros(2, dtype=torch.long, device=device))
    with pytest.raises(ValueError, match=rf"{name} must have shape .* got \(2, 1\)"):
        loss(logits, labels, torch.zeros(2, 1, device=device))
    with pytest.raises(ValueError, match=rf"{name} must hold one value for each of the 2 positives.*\(3,\)"):
        loss(logits, labels, torch.zeros(3, device=device))
    with pytest.raises(ValueError, match="eps must be >= 0 and finite; got -1"):
        loss(logits, labels, torch.zeros(2, device=device), eps=-1)
