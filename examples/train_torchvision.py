"""Train torchvision's RetinaNet, small and without pretrained weights, with any of the losses.

    python examples/train_torchvision.py --loss rank_sort --steps 200
    python examples/train_torchvision.py --loss alrp --data FOLDER --steps 2000     # a COCO-format folder

FOLDER holds images/ and instances_{train,val,test}.json. The default is a few steps on scenes of digits, which show
that everything works and train nothing; AP on the test split is printed at the end.
"""

import argparse
from pathlib import Path

import torch
from data import Dataset, InputError, Split, coco_folder
from detector import Detections
from digits import digit_scenes
from evaluate import coco_score
from torchvision.models import resnet18
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from tqdm import trange

import triton_rankloss as rankloss
from triton_rankloss.integrations.torchvision import use_loss

# The loss and, for losses of the classification alone, that of the boxes.
LOSSES = {
    "focal": None,  # torchvision's own
    "ap": lambda: (rankloss.APLoss(), rankloss.GeneralizedBoxIoULoss()),
    "alrp": lambda: (rankloss.ALRPLoss(steps_per_epoch=100),),
    "rank_sort": lambda: (rankloss.RankSortLoss(),),
    "dr": lambda: (rankloss.DRLoss(per_image=True), rankloss.GeneralizedBoxIoULoss()),
    "iou_balanced": lambda: (rankloss.IoUBalancedFocalLoss(), rankloss.IoUBalancedSmoothL1Loss()),
    "harmonic": lambda: (rankloss.HarmonicDetectionLoss(classification="focal"),),
}


def small_retinanet(num_classes: int, width: int, height: int) -> RetinaNet:
    """ResNet-18, a narrow pyramid of strides 8 to 64, three anchors per cell; channel 0 is torchvision's background."""
    levels = {"layer2": "0", "layer3": "1", "layer4": "2"}
    backbone = BackboneWithFPN(resnet18(weights=None), levels, [128, 256, 512], out_channels=64)
    anchors = AnchorGenerator(((24,), (48,), (96,), (192,)), ((0.5, 1.0, 2.0),) * 4)
    return RetinaNet(
        backbone,
        num_classes + 1,
        min_size=min(width, height),
        max_size=max(width, height),
        anchor_generator=anchors,
        # A ranking loss fixes the order of the scores, not their level: a threshold would drop any of them.
        score_thresh=0.0,
        detections_per_img=100,
    )


def load(arguments: argparse.Namespace) -> Dataset:
    """The user's folder, or scenes of digits."""
    if arguments.data:
        return coco_folder(arguments.data, *arguments.size)
    return digit_scenes(128, 128, arguments.seed)


def train(model: RetinaNet, split: Split, arguments: argparse.Namespace) -> None:
    """AdamW on random batches, the learning rate rising and falling once."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, total_steps=arguments.steps)
    generator = torch.Generator().manual_seed(arguments.seed)
    model.train()
    bar = trange(arguments.steps, desc=arguments.loss)
    for _ in bar:
        chosen = torch.randint(len(split.images), (arguments.batch_size,), generator=generator).tolist()
        images = [split.images[i].to(arguments.device) / 255 for i in chosen]
        targets = [
            {"boxes": split.boxes[i].to(arguments.device), "labels": split.labels[i].to(arguments.device) + 1}
            for i in chosen
        ]
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix({name: f"{part.item():.3f}" for name, part in losses.items()})


@torch.no_grad()
def detect(model: RetinaNet, split: Split, device: torch.device) -> list[Detections]:
    """Detections of every image, with labels from 0 again; what was found as background is dropped."""
    model.eval()
    detections = []
    for images in split.images.split(8):
        for found in model(list(images.to(device) / 255)):
            keep = found["labels"] > 0
            columns = found["boxes"][keep], found["scores"][keep], found["labels"][keep] - 1
            detections.append(Detections(*(column.cpu() for column in columns)))
    return detections


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=LOSSES, default="rank_sort")
    parser.add_argument("--data", type=Path, help="COCO-format folder (default: scenes of handwritten digits)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(256, 192), help="of its images")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    try:
        dataset = load(arguments)
    except InputError as error:
        parser.error(str(error))
    torch.manual_seed(arguments.seed)
    model = small_retinanet(len(dataset.categories), *reversed(dataset.train.images.shape[-2:])).to(arguments.device)
    if LOSSES[arguments.loss] is not None:
        use_loss(model, *LOSSES[arguments.loss]()).to(arguments.device)
    train(model, dataset.train, arguments)
    score = coco_score(detect(model, dataset.test, arguments.device), dataset.test, dataset.categories)
    print(f"{arguments.loss}: AP {score.ap:.3f}, AP50 {score.ap50:.3f} after {arguments.steps} steps")


if __name__ == "__main__":
    main()
