# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""A user's training step. `make package` checks its types, strictly, and runs it where the package alone is installed.

The lines with `type: ignore` are mistakes that a type checker has to find.
"""

import torch
from torch import Tensor
from typing_extensions import assert_type

import triton_rankloss as rankloss


def update(criterion: rankloss.RankSortLoss, logits: Tensor, labels: Tensor, boxes: Tensor, targets: Tensor) -> float:
    # PyTorch types what a module returns as Any.
    losses: rankloss.RankSortBoxLosses = criterion(logits, labels, pred_boxes=boxes, target_boxes=targets)
    total = sum(losses, torch.zeros(()))
    torch.autograd.backward(total)
    return total.item()


def mistakes(logits: Tensor, labels: Tensor) -> None:
    rankloss.ap_loss(logits, labels, delta="1")  # type: ignore[arg-type]
    rankloss.ap_loss(logits, labels, gamma=2.0)  # type: ignore[call-arg]
    rankloss.APLoss(per_image=1.5)  # type: ignore[arg-type]


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 50, 8, generator=generator).requires_grad_()
    labels = torch.full((2, 50), 8)
    labels[:, :5] = 3
    boxes = torch.rand(10, 4, generator=generator).requires_grad_()
    targets = torch.tensor([0.1, 0.1, 0.9, 0.9]).expand(10, 4)

    loss = rankloss.ap_loss(logits, labels, per_image=True)
    assert_type(loss, Tensor)
    assert_type(rankloss.ranking_statistics(loss), rankloss.RankingStatistics)
    assert_type(rankloss.rank_sort_loss(logits, labels, torch.rand(10)), rankloss.RankSortLosses)
    assert_type(rankloss.harmonic_loss(torch.rand(4), torch.rand(4)), Tensor)
    print(f"{update(rankloss.RankSortLoss(), logits, labels, boxes, targets):.4f}")
    for leaf in (logits, boxes):
        if leaf.grad is None or not leaf.grad.abs().sum() > 0:
            raise SystemExit("no gradient came back")


if __name__ == "__main__":
    main()
