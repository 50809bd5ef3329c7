"""Train Hugging Face's RT-DETR, small and made from a config, with a ranking loss.

    python examples/train_transformers.py --loss rank_sort --steps 200
    python examples/train_transformers.py --loss ap --data FOLDER --steps 2000     # a COCO-format folder

FOLDER holds images/ and instances_{train,val,test}.json. The default is a few steps on scenes of digits, which show
that everything works and train nothing. Nothing is downloaded. At the end come the parts of the last layer's loss,
averaged over the last tenth of the steps.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from data import Dataset, InputError, Split, coco_folder
from digits import digit_scenes
from torch import Tensor
from tqdm import trange
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

import triton_rankloss as rankloss
from triton_rankloss.integrations.transformers import use_loss

LOSSES = {
    "varifocal": None,  # RT-DETR's own
    "ap": rankloss.APLoss,
    "rank_sort": rankloss.RankSortLoss,
    "dr": rankloss.DRLoss,
    "iou_balanced": rankloss.IoUBalancedFocalLoss,
}


def small_rt_detr(categories: list[dict]) -> RTDetrForObjectDetection:
    """ResNet-18's blocks and an RT-DETR of a quarter of the usual width, with random weights."""
    backbone = RTDetrResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 128],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,  # nothing was pretrained
        encoder_in_channels=[64, 96, 128],
        encoder_hidden_dim=64,
        d_model=64,
        encoder_ffn_dim=128,
        decoder_in_channels=[64, 64, 64],
        decoder_ffn_dim=128,
        decoder_layers=3,
        num_queries=60,
        num_denoising=20,
        id2label={label: category["name"] for label, category in enumerate(categories)},
    )
    return RTDetrForObjectDetection(config)


def load(arguments: argparse.Namespace) -> Dataset:
    """The user's folder, or scenes of digits."""
    if arguments.data:
        return coco_folder(arguments.data, *arguments.size)
    return digit_scenes(128, 128, arguments.seed)


def labels_of(split: Split, index: int, device: torch.device) -> dict[str, Tensor]:
    """The objects of an image as RT-DETR takes them: boxes as centre and size, in fractions of the image."""
    height, width = split.images.shape[-2:]
    boxes = split.boxes[index] / torch.tensor([width, height, width, height])
    boxes = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), dim=1)
    return {"class_labels": split.labels[index].to(device), "boxes": boxes.to(device)}


def train(model: RTDetrForObjectDetection, split: Split, arguments: argparse.Namespace) -> dict[str, float]:
    """AdamW on random batches; the parts of the last layer's loss at the end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(arguments.seed)
    last = max(1, arguments.steps // 10)
    totals: Counter[str] = Counter()
    model.train()
    bar = trange(arguments.steps, desc=arguments.loss)
    for step in bar:
        chosen = torch.randint(len(split.images), (arguments.batch_size,), generator=generator)
        images = split.images[chosen].to(arguments.device) / 255
        labels = [labels_of(split, i, arguments.device) for i in chosen.tolist()]
        outputs = model(pixel_values=images, labels=labels)
        optimizer.zero_grad()
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        parts = {name: part.item() for name, part in outputs.loss_dict.items() if "_aux_" not in name}
        parts = {name: part for name, part in parts.items() if "_dn_" not in name}
        bar.set_postfix({name: f"{part:.3f}" for name, part in parts.items()})
        if step >= arguments.steps - last:
            totals.update({name: part / last for name, part in parts.items()})
    return totals


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=LOSSES, default="rank_sort")
    parser.add_argument("--data", type=Path, help="COCO-format folder (default: scenes of handwritten digits)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(256, 192), help="of its images")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    try:
        dataset = load(arguments)
    except InputError as error:
        parser.error(str(error))
    torch.manual_seed(arguments.seed)
    model = small_rt_detr(dataset.categories).to(arguments.device)
    loss = LOSSES[arguments.loss]
    if loss is not None:
        use_loss(model, loss())
    parts = train(model, dataset.train, arguments)
    print(
        f"{arguments.loss} after {arguments.steps} steps: "
        + ", ".join(f"{name} {part:.3f}" for name, part in parts.items())
    )


if __name__ == "__main__":
    main()
