"""Box losses: literal formulas, autograd of the formulas as torchvision.ops writes them, cases worked out by hand."""

import math

import pytest
import torch
from cases import INTERPRETED, assert_close
from hypothesis import given, settings, strategies as st

import triton_rankloss as trl
from triton_rankloss.boxes import box_iou

LOSSES = {
    "iou": trl.box_iou_loss,
    "giou": trl.generalized_box_iou_loss,
    "diou": trl.distance_box_iou_loss,
    "ciou": trl.complete_box_iou_loss,
    "harmonic": trl.harmonic_iou_loss,
}
every_loss = pytest.mark.parametrize("kind", LOSSES)
MAX_EXAMPLES = 5 if INTERPRETED else 25  # decorators cannot read fixtures


def literal(kind, a, b, eps=1e-7, gamma=0.8):
    """The loss of two boxes, in Python floats."""
    width_a, height_a = max(a[2] - a[0], 0), max(a[3] - a[1], 0)
    width_b, height_b = max(b[2] - b[0], 0), max(b[3] - b[1], 0)
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = width * height if width > 0 and height > 0 else 0.0
    union = width_a * height_a + width_b * height_b - intersection
    iou = intersection / (union + eps)
    corners = [*zip(a, b)]
    around = [max(*corners[k], *corners[k + 2]) - min(*corners[k], *corners[k + 2]) for k in (0, 1)]
    if kind == "iou":
        return 1 - iou
    if kind == "harmonic":
        return (1 + iou) ** gamma * (1 - iou)
    if kind == "giou":
        area = around[0] * around[1]
        return 1 - iou + (area - union) / (area + eps)
    centres = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    loss = 1 - iou + centres / (around[0] ** 2 + around[1] ** 2 + eps)
    if kind == "ciou":
        v = 4 / math.pi**2 * (math.atan2(width_b, height_b) - math.atan2(width_a, height_a)) ** 2
        loss += v / (1 - iou + v + eps) * v
    return loss


def as_torchvision_writes_it(kind, boxes1, boxes2, eps=1e-7, gamma=0.8):
    """The formulas, one coordinate at a time, for autograd to differentiate."""
    x1, y1, x2, y2 = boxes1.unbind(-1)
    u1, v1, u2, v2 = boxes2.unbind(-1)
    left, top, right, bottom = torch.max(x1, u1), torch.max(y1, v1), torch.min(x2, u2), torch.min(y2, v2)
    intersection = torch.where((right > left) & (bottom > top), (right - left) * (bottom - top), 0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - intersection
    iou = intersection / (union + eps)
    across, down = torch.max(x2, u2) - torch.min(x1, u1), torch.max(y2, v2) - torch.min(y1, v1)
    if kind == "iou":
        return 1 - iou
    if kind == "harmonic":
        return (1 + iou) ** gamma * (1 - iou)
    if kind == "giou":
        return 1 - iou + (across * down - union) / (across * down + eps)
    centres = ((x1 + x2) / 2 - (u1 + u2) / 2) ** 2 + ((y1 + y2) / 2 - (v1 + v2) / 2) ** 2
    loss = 1 - iou + centres / (across**2 + down**2 + eps)
    if kind == "ciou":
        v = 4 / math.pi**2 * (torch.atan((u2 - u1) / (v2 - v1)) - torch.atan((x2 - x1) / (y2 - y1))) ** 2
        with torch.no_grad():
            alpha = v / (1 - iou + v + eps)
        loss = loss + alpha * v
    return loss


def proper(num, *shape):
    """Boxes in float64 with x1 < x2 and y1 < y2, coordinates up to 12, that float32 can hold."""
    corner = 6 * torch.rand(num, *shape, 2)
    return torch.cat([corner, corner + 0.5 + 5 * torch.rand(num, *shape, 2)], -1).double()


def gradients_of(loss, boxes1, boxes2, upstream, **options):
    boxes1, boxes2 = boxes1.clone().requires_grad_(), boxes2.clone().requires_grad_()
    losses = loss(boxes1, boxes2, **options)
    return losses.detach(), *torch.autograd.grad(losses, (boxes1, boxes2), upstream.to(losses.dtype))


@every_loss
@pytest.mark.parametrize("grid", [False, True], ids=["generic", "many ties"])
def test_losses_and_gradients(kind, grid, device):
    boxes1, boxes2 = proper(200), proper(200)
    if grid:  # small integers: equal ends, touching and equal boxes, all of them frequent
        boxes1, boxes2 = (boxes1 / 3).round(), (boxes2 / 3).round()
        boxes1[:, 2:] += (boxes1[:, 2:] == boxes1[:, :2]).double()
        boxes2[:, 2:] += (boxes2[:, 2:] == boxes2[:, :2]).double()
    upstream = torch.randn(200, dtype=torch.float64)
    on_device = (tensor.to(device) for tensor in (boxes1, boxes2, upstream))
    losses, gradient1, gradient2 = gradients_of(LOSSES[kind], *on_device)
    assert losses.dtype == torch.float64
    assert_close(losses, [literal(kind, *pair) for pair in zip(boxes1.tolist(), boxes2.tolist())])
    boxes1.requires_grad_(), boxes2.requires_grad_()
    expected = as_torchvision_writes_it(kind, boxes1, boxes2)
    expected1, expected2 = torch.autograd.grad(expected, (boxes1, boxes2), upstream)
    assert_close(losses, expected)
    assert_close(gradient1, expected1)
    assert_close(gradient2, expected2)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "harmonic"])  # in ciou, alpha is a constant
def test_gradient_of_reversed_boxes(kind, device):
    """By differences, where no two coordinates are equal."""
    boxes1, boxes2 = 6 * torch.rand(2, 40, 4, dtype=torch.float64)
    upstream = torch.ones(40, dtype=torch.float64)
    assert ((boxes1[:, 2:] < boxes1[:, :2]) | (boxes2[:, 2:] < boxes2[:, :2])).any(1).sum() > 30
    on_device = (tensor.to(device) for tensor in (boxes1, boxes2, upstream))
    _, gradient1, gradient2 = gradients_of(LOSSES[kind], *on_device)
    step = 1e-6
    for boxes, gradient in ((boxes1, gradient1), (boxes2, gradient2)):
        for column in range(4):
            boxes[:, column] += step
            above = [literal(kind, *pair) for pair in zip(boxes1.tolist(), boxes2.tolist())]
            boxes[:, column] -= 2 * step
            below = [literal(kind, *pair) for pair in zip(boxes1.tolist(), boxes2.tolist())]
            boxes[:, column] += step
            slopes = [(x - y) / (2 * step) for x, y in zip(above, below)]
            assert_close(gradient[:, column], slopes, atol=1e-7)


# a = (0, 0, 2, 2) against b. All of them with eps = 0.
HAND = [
    # half: I = 2, U = 4, IoU = 1/2; the box around both is a, C = 4, D = 8; centres (1, 1), (0.5, 1): d = 1/4;
    # angles atan 1 = pi/4, atan(1/2): v = (1 - 4 atan(1/2) / pi)^2 / 4 = 0.0419551, alpha = v / (1/2 + v)
    ("nested", (0, 0, 1, 2), {"iou": 1 / 2, "giou": 1 / 2, "diou": 1 / 2 + 1 / 32, "harmonic": 1.5**0.8 / 2,
                              "ciou": 1 / 2 + 1 / 32 + 0.0419551**2 / 0.5419551}),
    # I = 1, U = 7; C = 9; d = 2, D = 18
    ("overlapping", (1, 1, 3, 3), {"iou": 6 / 7, "giou": 6 / 7 + 2 / 9, "diou": 6 / 7 + 1 / 9, "ciou": 6 / 7 + 1 / 9,
                                   "harmonic": (8 / 7) ** 0.8 * 6 / 7}),
    # I = 0, U = 8 = C; d = 4, D = 16 + 4
    ("touching", (2, 0, 4, 2), {"iou": 1, "giou": 1, "diou": 1 + 4 / 20, "ciou": 1 + 4 / 20, "harmonic": 1}),
    # I = 0, U = 8, C = 12; d = 16, D = 36 + 4
    ("apart", (4, 0, 6, 2), {"iou": 1, "giou": 1 + 4 / 12, "diou": 1 + 16 / 40, "ciou": 1 + 16 / 40, "harmonic": 1}),
    ("equal", (0, 0, 2, 2), {"iou": 0, "giou": 0, "diou": 0, "ciou": 0, "harmonic": 0}),
    # the point (1, 1): I = 0, U = 4 = C, d = 0; its angle 0 against pi/4: v = 1/4, alpha = 1/4 / (1 + 1/4)
    ("point", (1, 1, 1, 1), {"iou": 1, "giou": 1, "diou": 1, "ciou": 1 + 1 / 20, "harmonic": 1}),
    # an upright line at the left side: centres (1, 1), (0, 1): d = 1, D = 8; its angle 0
    ("line", (0, 0, 0, 2), {"iou": 1, "giou": 1, "diou": 1 + 1 / 8, "ciou": 1 + 1 / 8 + 1 / 20, "harmonic": 1}),
    # x2 < x1: empty. Width 0, height 2: as the line, but its centre is a's, d = 0
    ("reversed", (2, 0, 0, 2), {"iou": 1, "giou": 1, "diou": 1, "ciou": 1 + 1 / 20, "harmonic": 1}),
    # the same far away: U = 4, C = 8 2; centres (1, 1), (7, 1): d = 36, D = 64 + 4
    ("reversed, apart", (8, 0, 6, 2), {"iou": 1, "giou": 1 + 12 / 16, "diou": 1 + 36 / 68, "harmonic": 1,
                                       "ciou": 1 + 36 / 68 + 1 / 20}),
    # a point at the corner, whose sizes are -0: d = 2, D = 8
    ("-0", (0.0, 0.0, -0.0, -0.0), {"iou": 1, "giou": 1, "diou": 1 + 2 / 8, "ciou": 1 + 2 / 8 + 1 / 20,
                                      "harmonic": 1}),
]  # fmt: skip


@every_loss
@pytest.mark.parametrize(("box", "expected"), [case[1:] for case in HAND], ids=[case[0] for case in HAND])
def test_by_hand(kind, box, expected, device):
    boxes1 = torch.tensor([[0.0, 0, 2, 2]], dtype=torch.float64, device=device)
    boxes2 = torch.tensor([box], dtype=torch.float64, device=device)
    upstream = torch.ones(1, dtype=torch.float64, device=device)
    loss, gradient1, gradient2 = gradients_of(LOSSES[kind], boxes1, boxes2, upstream, eps=1e-300)
    assert loss.item() == pytest.approx(expected[kind], rel=1e-6, abs=1e-15)
    swapped = LOSSES[kind](boxes2, boxes1, eps=1e-300)
    assert swapped.item() == pytest.approx(loss.item(), abs=1e-15)
    assert gradient1.isfinite().all()
    assert gradient2.isfinite().all()


def test_iou_of_boxes_that_hardly_intersect(device):
    # Two unit squares, 3 2^-24 wide into each other: I = 3 2^-24, U = 2 - I. In float32, 1 - IoU has no digit of it.
    boxes1 = torch.tensor([[1 - 3 * 2.0**-24, 0, 2, 1]], device=device, requires_grad=True)
    iou = box_iou(boxes1, torch.tensor([[0.0, 0, 1, 1]], device=device), eps=0.0)
    expected = 3 * 2.0**-24 / (2 - 3 * 2.0**-24)
    assert_close(iou, [expected])
    # dI/dx1 = -1, dU/dx1 = -1 + 1 = 0; dI/dx2 = 0, dU/dx2 = 1; y: dI = I / 2 (the ends tie), dU = U / 2: nothing.
    iou.sum().backward()
    union = 2 - 3 * 2.0**-24
    assert_close(boxes1.grad, [[-1 / union, 0, -expected / union, 0]], atol=1e-8)


def test_gradients_by_hand(device):
    # a = (0, 0, 2, 2), b = (1, 1, 3, 3): I = 1, U = 7. dI/dx2 = 1, d|a|/dx2 = 2, so dIoU/dx2 = (1 * 7 - 1 * 1) / 49;
    # dI/dx1 = 0, d|a|/dx1 = -2, dU/dx1 = -2: dIoU/dx1 = 2/49.
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]], dtype=torch.float64, device=device)
    _, gradient, _ = gradients_of(trl.box_iou_loss, boxes[:1], boxes[1:], torch.ones(1, device=device), eps=0)
    assert gradient[0].tolist() == pytest.approx([-2 / 49, -2 / 49, -6 / 49, -6 / 49])
    # Apart, only C moves: b = (4, 0, 6, 2), C = 12, U = 8: (C - U) / C has dx1: dU = -2, dC = -2: (-dU C + U dC) / C^2
    # = (24 - 16) / 144; dx2: dU = 2, dC = 0: -24 / 144; y1 and y2 tie, so dC is half of -6 or 6, dU = -2 or 2:
    # (24 - 24) / 144 = 0.
    boxes[1] = torch.tensor([4.0, 0, 6, 2])
    _, gradient, _ = gradients_of(
        trl.generalized_box_iou_loss, boxes[:1], boxes[1:], torch.ones(1, device=device), eps=0
    )
    assert gradient[0].tolist() == pytest.approx([1 / 18, 0, -1 / 6, 0], abs=1e-15)


def test_gradients_of_a_side_of_0_by_hand(device):
    # a = (1, 4, 3, 4), a line above b = (0, 0, 2, 2): I = 0, U = |b| = 4, C = 3 * 4. As a grows, d|a| = 2 dy2 - 2 dy1,
    # dC = 4 dx2 + 3 dy2; of (C - U) / C the derivative is (U dC - C dU) / C^2.
    line, box = torch.tensor([[1.0, 4, 3, 4]], device=device), torch.tensor([[0.0, 0, 2, 2]], device=device)
    ones = torch.ones(1, device=device)
    expected = {trl.box_iou_loss: [0, 0, 0, 0], trl.generalized_box_iou_loss: [0, 24 / 144, 16 / 144, -12 / 144]}
    for loss, wanted in expected.items():
        (value,), gradient, _ = gradients_of(loss, line.double(), box.double(), ones, eps=0)
        assert gradient[0].tolist() == pytest.approx(wanted, abs=1e-15)
    # Inside a box it intersects nothing either: (1, 1, 1, 3) in (0, 0, 4, 4), U = C = 16; dU = -2 dx1 + 2 dx2, dC = 0.
    line, box = torch.tensor([[1.0, 1, 1, 3]], device=device), torch.tensor([[0.0, 0, 4, 4]], device=device)
    expected = {trl.box_iou_loss: [0, 0, 0, 0], trl.generalized_box_iou_loss: [2 / 16, 0, -2 / 16, 0]}
    for loss, wanted in expected.items():
        (value,), gradient, _ = gradients_of(loss, line.double(), box.double(), ones, eps=0)
        assert value == 1
        assert gradient[0].tolist() == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize("loss", [trl.box_iou_loss, trl.harmonic_iou_loss, trl.generalized_box_iou_loss])
def test_infinite_boxes(loss, device):
    infinite = torch.tensor([[0.0, 0, torch.inf, 1], [-torch.inf, -torch.inf, torch.inf, torch.inf]], device=device)
    for other in (infinite, torch.tensor([[0.0, 0, 2, 1]], device=device).expand(2, 4)):
        found = loss(infinite, other)
        assert ((found == 1) | found.isnan()).all()


@every_loss
def test_a_perfect_box_has_no_gradient(kind, device):
    boxes = proper(20).to(device)
    losses, gradient1, gradient2 = gradients_of(LOSSES[kind], boxes, boxes, torch.ones(20, device=device))
    assert losses.abs().max() < 1e-6
    assert gradient1.abs().max() < 1e-6
    assert gradient2.abs().max() < 1e-6


@every_loss
@settings(max_examples=MAX_EXAMPLES, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-3, 3)] * 8), min_size=1, max_size=6),
    st.tuples(st.floats(-100, 100), st.floats(-100, 100)),
    st.floats(0.1, 10),
)
def test_properties(kind, coordinates, shift, scale):
    """Finite, bounded and symmetric for any boxes; for proper ones the same wherever they are and in any unit."""
    boxes1, boxes2 = torch.tensor(coordinates, dtype=torch.float64).split(4, dim=1)
    losses, *gradients = gradients_of(LOSSES[kind], boxes1, boxes2, torch.ones(len(coordinates)), eps=1e-9)
    assert losses.min() >= -1e-6
    assert all(tensor.isfinite().all() for tensor in (losses, *gradients))
    pairs = zip(boxes1.tolist(), boxes2.tolist())
    assert_close(losses, [literal(kind, *pair, eps=1e-9) for pair in pairs], atol=1e-12)
    assert torch.allclose(LOSSES[kind](boxes2, boxes1, eps=1e-9), losses, atol=1e-12)
    moved = torch.tensor([*shift, *shift], dtype=torch.float64)
    is_box = ((boxes1[:, 2:] > boxes1[:, :2]) & (boxes2[:, 2:] > boxes2[:, :2])).all(1)
    bound = {"iou": 1, "giou": 2, "diou": 2, "ciou": 3, "harmonic": 1.05}[kind]
    assert (losses <= bound + 1e-6).all()
    elsewhere = LOSSES[kind](scale * boxes1 + moved, scale * boxes2 + moved, eps=1e-9)
    assert torch.allclose(elsewhere[is_box], losses[is_box], atol=1e-6)


@every_loss
def test_any_shape_in_front_of_the_coordinates(kind, device):
    boxes1, boxes2 = proper(3, 5).to(device), proper(3, 5).to(device)
    losses = LOSSES[kind](boxes1, boxes2)
    assert_close(losses.flatten(), LOSSES[kind](boxes1.flatten(0, 1), boxes2.flatten(0, 1)))
    assert_close(LOSSES[kind](boxes1[0, 0], boxes2[0, 0]), losses[0, 0])


@every_loss
def test_areas_beyond_the_range_of_float16(kind, device):
    boxes1, boxes2 = (50 * proper(64)).to(device).half(), (50 * proper(64)).to(device).half()
    upstream = torch.ones(64, device=device)
    losses, *gradients = gradients_of(LOSSES[kind], boxes1, boxes2, upstream)
    expected, *expected_gradients = gradients_of(LOSSES[kind], boxes1.double(), boxes2.double(), upstream)
    assert_close(losses, expected)
    for gradient, wanted in zip(gradients, expected_gradients):
        assert_close(gradient, wanted)
