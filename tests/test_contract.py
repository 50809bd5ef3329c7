"""What every loss promises whatever its formula, over the table of contract.py: few candidates or none, shared options.

Numbers are other tests' concern. Of the same contract: test_contract_dtypes, _nan, _wrappers, _operators, _arguments.
"""

from itertools import chain

import pytest
import torch
from cases import assert_close, assert_equal
from contract import (
    EMPTY,
    LOSSES,
    NUM_CLASSES,
    STATES,
    each,
    evaluate,
    foreground,
    make_inputs,
    make_labels,
    scopes,
    to_dtype,
    total_of,
)

import triton_rankloss as rankloss


def test_every_public_loss_has_its_row():
    public = vars(rankloss).values()
    assert {loss.function for loss in LOSSES} == {f for f in public if getattr(f, "__name__", "").endswith("_loss")}
    modules = {m for m in public if isinstance(m, type) and issubclass(m, torch.nn.Module)}
    assert {loss.module for loss in LOSSES} == modules
    others = {"interpolate", "per_image", "group", "max_positives", "avg_factor", "reduction", "background"}
    others |= {"classification", "activation", "detach_factors", "pred_boxes", "target_boxes"}
    for loss in LOSSES:
        assert set(loss.parameters) - others <= {*loss.allowed, *loss.arguments, *loss.fixed}, loss
        assert loss.allowed.keys() <= loss.options.keys(), loss


@each()
def test_no_positives_loss_0_gradient_0_connected_to_the_graph(loss, device):
    """Of losses that also take negatives by themselves, their part is left."""
    inputs = make_inputs(loss, "no positives", device=device)
    for options in [*scopes(loss), *({"reduction": r} for r in ("sum", "mean") if "reduction" in loss.parameters)]:
        outputs, gradients = evaluate(loss, inputs, **options)
        of_negatives = loss.takes_logits and loss.is_scalar and not loss.error_driven
        for output in outputs:
            assert output.isfinite().all()
            assert (output.sum() > 0) == of_negatives
        for name, gradient in zip(loss.leaves, gradients):
            assert gradient.shape == inputs[name].shape
            assert gradient.isfinite().all()
            assert gradient.any() == (of_negatives and name == "logits")


@each()
def test_all_ignored_or_empty_loss_0_gradient_0(loss, device):
    labels = [make_labels("all ignored"), *(torch.full(shape, NUM_CLASSES) for shape in EMPTY)]
    for some in labels:
        inputs = make_inputs(loss, labels=some, device=device)
        cases = [inputs, inputs | {"logits": inputs["logits"][..., :0]}] if loss.has_dense_targets else [inputs]
        for inputs in cases:
            for options in [*scopes(loss), *([{"reduction": "mean"}] if "reduction" in loss.parameters else [])]:
                outputs, gradients = evaluate(loss, inputs, **options)
                assert all(output.sum() == 0 for output in outputs)
                for name, gradient in zip(loss.leaves, gradients):
                    assert_equal(gradient, torch.zeros_like(inputs[name]))


@each(lambda loss: loss.takes_logits)
@pytest.mark.parametrize("state", STATES)
def test_ignored_candidates_change_nothing(loss, state, device):
    inputs = make_inputs(loss, state, device=device)
    nan = inputs["logits"].masked_fill((inputs[loss.targets] < 0).unsqueeze(-1), torch.nan)
    for scope in scopes(loss) if state == "mixed" else ({},):
        expected = evaluate(loss, inputs, **scope)
        assert all(part.isfinite().all() for parts in expected for part in parts)
        assert_equal(evaluate(loss, inputs | {"logits": nan}, **scope), expected)


@each(lambda loss: "per_image" in loss.parameters)
def test_per_image_is_the_mean_over_images(loss, device):
    """Over those with a positive; of DR Loss, over those with a candidate."""
    labels = torch.cat([make_labels("mixed"), make_labels("no positives" if loss.error_driven else "all ignored")])
    inputs = make_inputs(loss, labels=labels, device=device)
    sizes = foreground(loss, inputs).sum(1).tolist()
    images = [
        dict(zip(inputs, image)) for image in zip(*(v if v.dim() > 1 else v.split(sizes) for v in inputs.values()))
    ]
    alone = [evaluate(loss, image) for image in images]
    counted = sum(size > 0 if loss.error_driven else bool((row >= 0).any()) for size, row in zip(sizes, labels))
    assert 0 < counted < len(images)
    outputs, gradients = evaluate(loss, inputs, per_image=True)
    for k, output in enumerate(outputs):
        assert_close(output, sum(parts[k] for parts, _ in alone) / counted)
    assert_close(gradients[0], torch.stack([parts[0] for _, parts in alone]) / counted)
    for k in range(1, len(gradients)):
        assert_close(gradients[k], torch.cat([parts[k] for _, parts in alone]) / counted)
    single = {name: value[:1] if value.dim() > 1 else value[: sizes[0]] for name, value in inputs.items()}
    for actual, wanted in zip(chain(*evaluate(loss, single, per_image=True)), chain(*alone[0])):
        assert_close(actual.view(wanted.shape), wanted)


@each(lambda loss: "max_positives" in loss.parameters)
def test_a_bound_on_positives_changes_nothing_unless_it_is_broken(loss, device):
    inputs = make_inputs(loss, device=device)
    num_positives = int(foreground(loss, inputs).sum())
    for scope in scopes(loss):
        expected = evaluate(loss, inputs, **scope)
        for bound in (50,) if scope else (num_positives, 50):
            assert_equal(evaluate(loss, inputs, max_positives=bound, **scope), expected)
        outputs, gradients = evaluate(loss, inputs, max_positives=3, **scope)
        assert all(output.isnan() for output in outputs)
        assert gradients[0].isnan().any()


@each(lambda loss: "reduction" in loss.parameters)
def test_reductions(loss, device):
    inputs = make_inputs(loss, device=device)
    (losses,), gradients = evaluate(loss, inputs, alike=True)
    for reduction, divisor in (("sum", 1), ("mean", len(losses))):
        (total,), reduced = evaluate(loss, inputs, reduction=reduction)
        assert_close(total, losses.sum() / divisor)
        for actual, wanted in zip(reduced, gradients):
            assert_close(actual, wanted / divisor)


@each()
def test_bitwise_the_same_run_after_run(loss, device):
    """And the call changes neither its arguments nor, by a first backward, what a second one gives."""
    inputs = to_dtype(make_inputs(loss, device=device), torch.float32)
    kept = {name: value.clone() for name, value in inputs.items()}
    first = evaluate(loss, inputs)
    for _ in range(2):
        assert_equal(evaluate(loss, inputs), first)
    leaves = [inputs[name].requires_grad_() for name in loss.leaves]
    total = total_of(loss(**inputs))
    once = torch.autograd.grad(total, leaves, retain_graph=True)
    assert_equal(torch.autograd.grad(total, leaves), once)
    assert_equal({name: value.detach() for name, value in inputs.items()}, kept)


@each()
def test_one_leaf_alone_gets_the_same_gradient(loss, device):
    inputs = make_inputs(loss, device=device)
    _, expected = evaluate(loss, inputs, alike=True)
    for name, wanted in zip(loss.leaves, expected):
        leaf = inputs[name].detach().clone().requires_grad_()
        total_of(loss(**inputs | {name: leaf})).backward()
        assert_equal(leaf.grad, wanted)


@each()
def test_no_gradient_reaches_other_arguments(loss, device):
    inputs = make_inputs(loss, device=device)
    others = [name for name in inputs if name not in loss.leaves and inputs[name].is_floating_point()]
    leaf = inputs[loss.leaves[0]].requires_grad_()
    for name in others:
        other = inputs[name].clone().requires_grad_()
        total_of(loss(**inputs | {name: other})).backward()
        assert leaf.grad.any()
        assert other.grad is None


@each()
def test_meta_tensors_give_shapes(loss):
    """Without a bound, how many positives there are is data, of which meta tensors have none."""
    inputs = make_inputs(loss)
    on_meta = {name: value.to("meta") for name, value in inputs.items()}
    bound = {"max_positives": 20} if "max_positives" in loss.parameters else {}
    if loss.function in (rankloss.harmonic_detection_loss, rankloss.task_contrastive_loss):
        with pytest.raises(RuntimeError, match="data-dependent shape"):
            loss(**on_meta)
        return
    for scope in scopes(loss):
        for found, expected in zip(
            chain(*evaluate(loss, on_meta, **bound, **scope)), chain(*evaluate(loss, inputs, **scope))
        ):
            assert found.is_meta
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if bound:
        with pytest.raises(RuntimeError, match="data-dependent shape"):
            loss(**on_meta)
