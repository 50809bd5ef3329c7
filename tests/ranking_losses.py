"""The ranking losses called alike, through the package and on the dense reference: what their tests share."""

import torch
from torch import Tensor

import triton_rankloss as rankloss
from triton_rankloss.reference import alrp, ap, rank_sort

# By name: (logits, targets, one value for each positive) -> the parts of the loss.
LOSSES = {
    "ap": lambda logits, targets, values, **options: (rankloss.ap_loss(logits, targets, **options),),
    "alrp": rankloss.alrp_loss,
    "rank_sort": rankloss.rank_sort_loss,
}


def evaluate(
    name: str, logits: Tensor, targets: Tensor, values: Tensor, **options
) -> tuple[list[Tensor], list[Tensor]]:
    """(parts of the loss, gradients): of every part in the logits; aLRP's localization moves the errors instead."""
    logits, values = logits.detach().requires_grad_(), values.detach().requires_grad_()
    losses = LOSSES[name](logits, targets, values, **options)
    moved = [logits, values if name == "alrp" else logits]
    gradients = [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss, leaf in zip(losses, moved)]
    return [loss.detach() for loss in losses], gradients


def oracle(name: str, logits: Tensor, targets: Tensor, values: Tensor, *, per_image: bool = False, **options):
    """What `evaluate` should find: the dense reference, in float64, on the positives and negatives of each image."""
    if per_image:
        return _mean_over_images(name, logits, targets, values, **options)
    logits, values = logits.double(), values.double()
    if targets.shape != logits.shape:
        channels = torch.arange(logits.shape[-1], device=logits.device)
        targets = torch.where(targets.unsqueeze(-1) < 0, -1, (targets.unsqueeze(-1) == channels).long())
    is_positive, is_negative = targets > 0, targets == 0
    candidates = logits[is_positive], logits[is_negative]

    def on_logits(of_positives: Tensor, of_negatives: Tensor | float) -> Tensor:
        gradient = torch.zeros_like(logits)
        gradient[is_positive], gradient[is_negative] = of_positives, of_negatives
        return gradient

    if name == "ap":
        loss, *updates = ap.ap_loss(*candidates, **options)
        return [loss], [on_logits(*updates)]
    if name == "alrp":
        *losses, of_positives, of_negatives, of_errors = alrp.alrp_loss(*candidates, values, **options)
        return losses, [on_logits(of_positives, of_negatives), of_errors]
    *losses, of_positives, of_negatives, sorting = rank_sort.rank_sort_loss(*candidates, values, **options)
    return losses, [on_logits(of_positives, of_negatives), on_logits(sorting, 0.0)]


def _mean_over_images(name: str, logits: Tensor, labels: Tensor, values: Tensor, **options):
    sizes = ((labels >= 0) & (labels < logits.shape[-1])).sum(1).tolist()
    images = [oracle(name, *image, **options) for image in zip(logits, labels, values.split(sizes), strict=True)]
    num = sum(size > 0 for size in sizes)
    losses = [sum(parts) / num for parts in zip(*(losses for losses, _ in images))]
    per_logit, *per_positive = zip(*(gradients for _, gradients in images))
    gradients = [torch.stack(per_logit)]
    gradients += [torch.cat(parts) if name == "alrp" else torch.stack(parts) for parts in per_positive]
    return losses, [gradient / num for gradient in gradients]
