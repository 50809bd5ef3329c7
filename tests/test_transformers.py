"""RT-DETR with the ranking losses; `make test-transformers` runs this where transformers is installed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import triton_rankloss as rankloss

pytest.importorskip("transformers", reason="transformers is not installed; make test-transformers has it")
pytest.importorskip("scipy", reason="scipy is not installed; make test-transformers has it")

from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from triton_rankloss.integrations.transformers import use_loss


@pytest.fixture
def model(device) -> RTDetrForObjectDetection:
    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[32, 48, 64],
        encoder_hidden_dim=32,
        d_model=32,
        encoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=32,
        decoder_attention_heads=4,
        decoder_layers=2,
        num_queries=20,
        num_labels=5,
        num_denoising=8,
    )
    return RTDetrForObjectDetection(config).to(device).train()


@pytest.fixture
def batch(device):
    """Two images; the second has no object."""
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.4, 0.3]], device=device)
    labels = [
        {"class_labels": torch.tensor([1, 3], device=device), "boxes": boxes},
        {"class_labels": torch.tensor([], dtype=torch.long, device=device), "boxes": boxes[:0]},
    ]
    return {"pixel_values": torch.rand(2, 3, 96, 96, device=device), "labels": labels}


@pytest.mark.parametrize(
    "loss",
    [
        rankloss.APLoss(),
        rankloss.RankSortLoss(),
        rankloss.DRLoss(),
        rankloss.IoUBalancedFocalLoss(),
        rankloss.IoUBalancedBCELoss(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_every_set_of_predictions_is_ranked(model, batch, loss):
    outputs = use_loss(model, loss.to(model.device))(**batch)
    kinds = ["loss_ranking", "loss_sorting"] if isinstance(loss, rankloss.RankSortLoss) else ["loss_class"]
    # Two decoder layers and the encoder; the two layers again, with denoising queries.
    sets = ["", "_aux_0", "_aux_1", "_dn_0", "_dn_1"]
    assert set(outputs.loss_dict) == {part + name for part in (*kinds, "loss_bbox", "loss_giou") for name in sets}
    assert outputs.loss.item() == pytest.approx(sum(part.item() for part in outputs.loss_dict.values()), rel=1e-5)
    outputs.loss.backward()
    for head in (*model.model.decoder.class_embed, model.model.enc_score_head):
        assert head.weight.grad.abs().sum() > 0


def test_the_rest_of_the_loss_is_the_model_s_own(model, batch):
    before = model(**batch)
    after = use_loss(model, rankloss.APLoss())(**batch)
    assert len(after.auxiliary_outputs) == len(before.auxiliary_outputs)
    for name in before.loss_dict:
        if "vfl" not in name and "_dn_" not in name:  # those are drawn anew in every call
            assert after.loss_dict[name].item() == pytest.approx(before.loss_dict[name].item(), rel=1e-4)


def test_the_last_layer_from_its_matches(model, batch):
    model.config.auxiliary_loss = False
    outputs = use_loss(model, rankloss.RankSortLoss())(**batch)
    assert outputs.auxiliary_outputs is None
    # The denoising queries come first.
    logits, boxes = outputs.logits[:, -20:], outputs.pred_boxes[:, -20:]
    (queries, objects), _ = RTDetrHungarianMatcher(model.config)(
        {"logits": logits, "pred_boxes": boxes}, batch["labels"]
    )
    labels = torch.full(logits.shape[:2], 5, device=logits.device)
    iou = torch.zeros(logits.shape[:2], device=logits.device)
    wanted = batch["labels"][0]
    for query, found in zip(queries.tolist(), objects.tolist()):
        labels[0, query] = wanted["class_labels"][found]
        pair = center_to_corners_format(torch.stack([boxes[0, query], wanted["boxes"][found]]))
        iou[0, query] = 1 - rankloss.box_iou_loss(*pair.detach())
    ranking, sorting = rankloss.rank_sort_loss(logits, labels, iou)
    assert outputs.loss_dict["loss_ranking"].item() == pytest.approx(ranking.item(), rel=1e-5)
    assert outputs.loss_dict["loss_sorting"].item() == pytest.approx(sorting.item(), rel=1e-4, abs=1e-6)


def test_without_objects(model, batch):
    for label in batch["labels"]:
        label["class_labels"], label["boxes"] = label["class_labels"][:0], label["boxes"][:0]
    for loss in (rankloss.APLoss(), rankloss.RankSortLoss()):
        outputs = use_loss(model, loss)(**batch)
        assert outputs.loss.item() == 0
        outputs.loss.backward()


def test_a_module_set_as_loss_function_is_ignored(model, batch):
    """Why `use_loss` sets a function."""
    model.loss_function = rankloss.APLoss()
    assert any("vfl" in name for name in model(**batch).loss_dict)


def test_bad_arguments(model):
    with pytest.raises(TypeError, match=r"model must be an RT-DETR .*; got Linear"):
        use_loss(torch.nn.Linear(1, 1), rankloss.APLoss())
    with pytest.raises(TypeError, match=r"loss must be one of APLoss, .*; got ALRPLoss"):
        use_loss(model, rankloss.ALRPLoss())


def test_the_example():
    for module in ("sklearn", "tqdm"):
        pytest.importorskip(module, reason="what the examples need is not installed")
    script = Path(__file__).parent.parent / "examples" / "train_transformers.py"
    done = subprocess.run(
        [sys.executable, script, "--steps", "3", "--batch-size", "2", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rank_sort after 3 steps: loss_ranking" in done.stdout
