"""What every loss promises of dtypes, of the forms of its targets, and of memory layout."""

from itertools import chain

import pytest
import torch
from cases import DTYPES, INTERPRETED, assert_close, assert_equal
from contract import (
    NUM_CLASSES,
    each,
    evaluate,
    foreground,
    forms,
    make_inputs,
    make_labels,
    per_anchor,
    scopes,
    to_dense,
    to_dtype,
)


@each()
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_floating_dtype_comes_in(loss, dtype, device):
    """The loss is float32, for float64 float64; it and the gradients are those of float64, rounded."""
    options = {"task_contrastive_weight": 0.5} if "task_contrastive_weight" in loss.allowed else {}
    inputs = to_dtype(make_inputs(loss, device=device), dtype)
    for scope in scopes(loss)[: 1 if loss.error_driven else 2]:
        outputs, gradients = evaluate(loss, inputs, **options, **scope)
        expected, expected_gradients = evaluate(loss, to_dtype(inputs, torch.float64), **options, **scope)
        for output, wanted in zip(outputs, expected):
            assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert_close(output, wanted)
        for gradient, wanted in zip(gradients, expected_gradients):
            assert gradient.dtype == dtype
            assert_close(gradient, wanted, times=loss.roundings)


@each()
def test_gradients_have_the_dtype_of_their_input(loss, device):
    for wide in loss.leaves:
        inputs = to_dtype(make_inputs(loss, device=device), torch.float16)
        outputs, gradients = evaluate(loss, to_dtype(inputs, torch.float64, [wide]))
        assert {output.dtype for output in outputs} == {torch.float64 if wide in loss.dtype_from else torch.float32}
        assert [gradient.dtype for gradient in gradients] == [
            torch.float64 if name == wide else torch.float16 for name in loss.leaves
        ]


@each(lambda loss: loss.takes_logits)
def test_labels_and_dense_targets_agree(loss, device):
    inputs = make_inputs(loss, device=device)
    labels = inputs[loss.targets]
    same = [labels.to(torch.int16)]
    if loss.has_dense_targets:
        same += [to_dense(labels).to(dtype) for dtype in (torch.float32, torch.int64, torch.int8)]
    for scope in scopes(loss):
        expected = evaluate(loss, inputs, **scope)
        for targets in same[1:] if scope else same:
            assert_equal(evaluate(loss, inputs | {loss.targets: targets}, **scope), expected)
        _, gradients = expected
        assert not gradients[0][labels < 0].any()


@each(lambda loss: loss.takes_logits)
@pytest.mark.parametrize("num_classes", [NUM_CLASSES, 257] if INTERPRETED else [NUM_CLASSES, 200, 257])
def test_labels_in_any_integer_dtype(loss, num_classes, device):
    """Also in one that cannot hold the number of channels: to int8, 200 would be -56, and to uint8, 257 would be 1."""
    labels = make_labels("mixed")
    labels[(labels < 0) | (labels == NUM_CLASSES)] = 2
    inputs = make_inputs(loss, labels=labels, device=device)
    inputs["logits"] = torch.randn(*labels.shape, num_classes + loss.is_softmax, dtype=torch.float64, device=device)
    expected = evaluate(loss, inputs)
    for dtype in (torch.uint8, torch.int8) if INTERPRETED else (torch.uint8, torch.int8, torch.int16, torch.int32):
        found = evaluate(loss, inputs | {loss.targets: inputs[loss.targets].to(dtype)})
        for actual, wanted in zip(chain(*found), chain(*expected)):
            assert_close(actual, wanted, times=0.01)


@each(lambda loss: loss.takes_logits)
def test_one_anchor_without_a_dimension_for_anchors(loss, device):
    inputs = make_inputs(loss, labels=torch.tensor([1]), device=device)
    expected = evaluate(loss, inputs)
    alone = inputs | {"logits": inputs["logits"][0], loss.targets: inputs[loss.targets][0]}
    per_anchor = [alone | {"iou": inputs["iou"][0]}] if loss.takes_iou_per_anchor and not loss.error_driven else []
    for form in (alone, *per_anchor):
        outputs, gradients = evaluate(loss, form)
        assert_equal(outputs, expected[0])
        assert_equal([g.view(w.shape) for g, w in zip(gradients, expected[1])], expected[1])


@each(lambda loss: loss.takes_iou_per_anchor)
def test_iou_of_positives_and_of_anchors_agree(loss, device):
    inputs = make_inputs(loss, device=device)
    expected, expected_gradients = evaluate(loss, inputs)
    outputs, gradients = evaluate(loss, per_anchor(loss, inputs))
    assert_equal(outputs, expected)
    gradients[1:] = [gradient[foreground(loss, inputs)] for gradient in gradients[1:]]
    assert_equal(gradients, expected_gradients)


@each()
def test_non_contiguous_inputs_change_nothing(loss, device):
    layouts = (lambda x: torch.stack([x, x], -1)[..., 0], lambda x: x.transpose(0, -1).contiguous().transpose(0, -1))
    inputs = make_inputs(loss, device=device)
    for form in forms(loss, inputs):
        more = [*scopes(loss)[1:], *({"reduction": "sum"} for _ in loss.parameters if _ == "reduction")]
        for options in ({}, *more) if form is inputs else ({},):
            expected = evaluate(loss, form, **options)
            for layout in layouts:
                strided = {name: layout(value) for name, value in form.items()}
                assert not any(value.is_contiguous() for value in strided.values() if value.dim() > 1)
                assert_equal(evaluate(loss, strided, **options), expected)
        if not loss.is_scalar:
            assert_equal(evaluate(loss, strided, alike=True), evaluate(loss, form, alike=True))


@each(lambda loss: loss.takes_logits and not loss.error_driven)
def test_blocks_of_any_size_say_the_same(loss, device, monkeypatch):
    """Those in which a CPU reads the logits."""
    inputs = make_inputs(loss, device=device)
    dense = inputs | {"targets": to_dense(inputs["targets"])} if loss.has_dense_targets else inputs
    for form in (inputs, dense):
        expected = evaluate(loss, form)
        with monkeypatch.context() as patch:
            patch.setattr("triton_rankloss.targets.BLOCK", 7)
            found = evaluate(loss, form)
        for actual, wanted in zip(chain(*found), chain(*expected)):
            assert_close(actual, wanted, times=0.01)


@each(lambda loss: "avg_factor" in loss.parameters)
def test_loss_scale_of_mixed_precision_reaches_gradients_before_they_are_rounded(loss, device):
    """Divided by 2^24, gradients are 0 in float16, unless what they are scaled by in backward comes first."""
    inputs = to_dtype(make_inputs(loss, device=device), torch.float16)
    _, gradients = evaluate(loss, inputs, wrap=lambda call: lambda *x: (2.0**24 * call(*x)[0],), avg_factor=2.0**24)
    _, expected = evaluate(loss, to_dtype(inputs, torch.float64), avg_factor=1.0)
    for gradient, wanted in zip(gradients, expected):
        assert_close(gradient, wanted, times=loss.roundings)
