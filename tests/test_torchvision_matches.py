"""What torchvision's detectors hand to a loss, and what they detect; needs torchvision as test_torchvision.py does."""

import pytest
import torch

import triton_rankloss as rankloss

pytest.importorskip("torchvision", reason="torchvision is not installed; make test-torchvision has it")

from small_torchvision import NUM_CLASSES, batch_of_two, faster_rcnn, fcos, make, retinanet

from triton_rankloss.integrations.torchvision import match, use_loss


@pytest.fixture
def batch(device):
    return batch_of_two(device)


def test_all_levels_and_images_are_ranked_together(batch, device):
    model, seen = make(retinanet, device), []
    use_loss(model, lambda matches: seen.append(matches) or {"none": matches.logits.sum() * 0})
    model(*batch)
    (matches,) = seen
    anchors = 3 * (8 * 8 + 4 * 4 + 2 * 2 + 1)
    assert matches.logits.shape == (2, anchors, NUM_CLASSES)
    positive = (matches.labels >= 0) & (matches.labels < NUM_CLASSES)
    assert set(matches.labels[0][positive[0]].tolist()) == {1, 3}
    assert not positive[1].any()
    assert len(matches.boxes) == positive.sum()
    use_loss(model, rankloss.APLoss())
    assert model(*batch)["classification"].item() == pytest.approx(rankloss.ap_loss(*matches[:2]).item(), rel=1e-6)


def test_matches_of_retinanet_by_hand(device):
    anchors = [torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20], [0, 0, 20, 20]], device=device)]
    targets = [{"boxes": torch.tensor([[0.0, 0, 10, 20]], device=device), "labels": torch.tensor([2], device=device)}]
    outputs = {
        "cls_logits": torch.zeros(1, 3, 4, device=device),
        "bbox_regression": torch.zeros(1, 3, 4, device=device),
    }
    coder = make(retinanet, device).box_coder
    found = match(targets, outputs, anchors, [torch.tensor([0, -1, -2], device=device)], coder)
    assert found.labels.tolist() == [[2, 4, -1]]  # an object, background, ignored
    assert found.boxes.tolist() == [[0, 0, 10, 10]]  # no offset: the anchor
    assert found.target_boxes.tolist() == [[0, 0, 10, 20]]
    # Centre half an anchor further down, of twice its height.
    expected = torch.tensor([[0, 0.5, 0, 0.6931]], device=device)
    torch.testing.assert_close(found.target_deltas, expected, atol=1e-4, rtol=0)


def test_matches_of_fcos_by_hand(device):
    points = [torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]], device=device)]  # centres (4, 4) and (12, 4)
    targets = [{"boxes": torch.tensor([[10.0, 0, 20, 12]], device=device), "labels": torch.tensor([1], device=device)}]
    outputs = {
        "cls_logits": torch.zeros(1, 2, 4, device=device),
        "bbox_regression": torch.tensor([[[9.0, 9, 9, 9], [1, 0.5, 2, 0]]], device=device),
    }
    coder = make(fcos, device).box_coder
    found = match(targets, outputs, points, [torch.tensor([-1, 0], device=device)], coder)
    assert found.labels.tolist() == [[4, 1]]
    assert found.boxes.tolist() == [[4, 0, 28, 4]]  # distances to the left, above, right and below, in strides of 8
    assert found.target_deltas.tolist() == [[0.25, 0.5, 1, 1]]


def test_matches_of_faster_rcnn(batch, device):
    """Sampled proposals of an image in a row, filled up with ignored ones where it has fewer; boxes of their class."""
    images, targets = batch
    model, seen = make(faster_rcnn, device), []
    with torch.no_grad():  # a class moves its boxes to the right by 0, 1, 2 or 3 widths
        predictor = model.roi_heads.box_predictor.bbox_pred
        predictor.weight.zero_()
        predictor.bias.view(NUM_CLASSES, 4).copy_(torch.tensor([0.0, 10, 20, 30]).unsqueeze(1) * torch.eye(4)[0])
    use_loss(model, lambda matches: seen.append(matches) or {"none": matches.logits.sum() * 0})
    model(images, targets)
    (matches,) = seen
    background = NUM_CLASSES - 1
    assert matches.logits.shape == (*matches.labels.shape, background)
    assert (matches.labels[0] == -1).any() != (matches.labels[1] == -1).any()
    assert set(matches.labels[0].unique().tolist()) - {-1} == {0, 2, background}  # labels 1 and 3 of torchvision
    assert set(matches.labels[1].unique().tolist()) - {-1} == {background}
    positive = (matches.labels >= 0) & (matches.labels < background)
    assert len(matches.boxes) == positive.sum()
    classes = matches.labels[positive] + 1
    torch.testing.assert_close(matches.deltas[:, 0], 10.0 * classes)
    boxes = targets[0]["boxes"]
    assert torch.equal(matches.target_boxes, torch.where(classes.unsqueeze(1) == 1, boxes[0], boxes[1]))
    # The objects are proposals too: their offsets are 0, and their boxes move by 1 and by 3 of their widths.
    own = (matches.target_deltas == 0).all(1)
    moved = {tuple(box.tolist()) for box in matches.boxes[own].round()}
    assert moved == {(24, 4, 44, 30), (140, 16, 180, 60)}


def test_sigmoid_detections_of_one_class_are_those_of_a_softmax(device):
    """A softmax over (0, x) is the sigmoid of x, so torchvision's own detections are what is expected."""
    torch.manual_seed(0)
    heads = make(faster_rcnn, device).roi_heads
    corners = 40 * torch.rand(60, 2, device=device)
    proposals = torch.cat((corners, corners + 5 + 20 * torch.rand(60, 2, device=device)), dim=1)
    logits = torch.cat((torch.zeros(60, 1), torch.randn(60, 1)), dim=1).to(device)
    arguments = logits, torch.randn(60, 8, device=device), [proposals[:40], proposals[40:]], [(64, 64), (48, 64)]
    heads.score_thresh = 0.4
    expected = heads.postprocess_detections(*arguments)
    model = make(faster_rcnn, device)
    model.roi_heads.score_thresh = 0.4
    found = use_loss(model, rankloss.RankSortLoss()).roi_heads.postprocess_detections(*arguments)
    for ours, theirs in zip(found, expected):
        for image, their_image in zip(ours, theirs, strict=True):
            torch.testing.assert_close(image, their_image)
    assert all(0 < len(image) < 40 for image in found[0])


def test_sigmoid_detections_of_many_classes_by_hand(device):
    heads = use_loss(make(faster_rcnn, device), rankloss.APLoss()).roi_heads
    heads.score_thresh = 0.3
    proposals = [torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [30, 30, 50, 50]], device=device)]
    # Background, then three classes: the first two proposals overlap in class 1, the second is of class 3 as well.
    logits = torch.tensor([[9.0, 2, -9, -9], [9, 1, -9, 0], [9, -9, -9, -9]], device=device)
    boxes, scores, labels = heads.postprocess_detections(
        logits, torch.zeros(3, 16, device=device), proposals, [(64, 64)]
    )
    assert labels[0].tolist() == [1, 3]
    assert scores[0].tolist() == pytest.approx([0.880797, 0.5], abs=1e-6)  # sigmoids of 2 and 0
    assert boxes[0].tolist() == [[0, 0, 20, 20], [1, 0, 21, 20]]
