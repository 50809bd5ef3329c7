"""What every loss and module says to bad arguments: the error names the argument and what it got."""

import inspect
import math
import re

import pytest
import torch
from cases import assert_equal
from contract import each, make_inputs, to_dense

from triton_rankloss import iou_balanced_bce_loss, iou_balanced_focal_loss

UNCOUNTED = iou_balanced_bce_loss, iou_balanced_focal_loss


@each()
def test_bad_tensors(loss, device):
    inputs = make_inputs(loss, device=device)

    def refuses(name, value, error, message):
        with pytest.raises(error, match=message):
            loss(**inputs | {name: value})

    for name, value in inputs.items():
        refuses(name, value.tolist(), TypeError, f"{name} must be a tensor; got list")
        if value.is_floating_point():
            refuses(name, value.long(), TypeError, f"{name} must have a floating-point dtype; got torch.int64")
            small = value.to(torch.float8_e5m2)
            refuses(name, small, TypeError, f"{name} must have a floating-point dtype of .*; got torch.float8_e5m2")
        else:
            refuses(name, value.float(), TypeError, f"{name} .*must have an integer dtype; got torch.float32")
            refuses(name, value.bool(), TypeError, f"{name} .*must have an integer dtype; got torch.bool")
            for dtype in (torch.uint16, torch.uint32, torch.uint64):
                refuses(name, value.to(dtype), TypeError, f"{name} must have a dtype that .*; got {dtype}")
            if loss.has_dense_targets:
                dense = to_dense(value).to(torch.uint16)
                refuses(name, dense, TypeError, f"{name} must have a dtype that .*; got torch.uint16")
        if name != loss.arguments[0]:
            refuses(name, value.to("meta"), ValueError, f"{name} must be on the same device.*; got meta")
            shape = re.escape(str(tuple(value[:-1].shape)))
            longer = "target_boxes" if name == "pred_boxes" else name  # the second of a pair does not fit the first
            # A GPU that has the kernels would have to be waited for: there the loss is NaN.
            if not (value.is_cuda and loss.function in UNCOUNTED and name == "iou"):
                refuses(name, value[:-1], ValueError, rf"{longer} must .*{shape}")
    if loss.takes_logits:
        refuses("logits", inputs["logits"][0, 0, 0], ValueError, r"logits must have .*; got (shape )?\(\)")
        for name, value in inputs.items():
            if name not in ("logits", loss.targets):
                refuses(name, value.unsqueeze(1), ValueError, f"{name} must .*{len(value)}, 1")
    for name in {"boxes1", "boxes2", "pred_boxes", "target_boxes"} & inputs.keys():
        for value in (inputs[name][:, :3], inputs[name][0, 0]):
            refuses(name, value, ValueError, rf"{name} must have shape .*4\]; got {re.escape(str(tuple(value.shape)))}")


def wrong_options(loss):
    """(name, value, error, message)."""
    for name, (bounds, values) in loss.allowed.items():
        for value in (*values, math.inf, math.nan):
            yield name, value, ValueError, f"{name} must be {bounds} and finite; got {value}"
        yield name, "1", TypeError, f"{name} must be a number; got str"
        yield name, True, TypeError, f"{name} must be a number; got bool"
    choices = {"reduction": "max", "classification": "hinge", "activation": "relu"}
    for name in choices.keys() & set(loss.parameters):
        yield name, choices[name], ValueError, f"{name} must be one of '.*'; got '{choices[name]}'"
        yield name, None, ValueError, f"{name} must be one of '.*'; got None"
    for name in {"detach_factors", "interpolate", "per_image"} & set(loss.parameters):
        yield name, 1, TypeError, f"{name} must be a bool; got int"
        yield name, None, TypeError, f"{name} must be a bool; got NoneType"
        yield name, "no", TypeError, f"{name} must be a bool; got str"
    if "max_positives" in loss.parameters:
        yield "max_positives", 0, ValueError, "max_positives must be >= 1; got 0"
        yield "max_positives", 2.5, TypeError, "max_positives must be an int or None; got float"
        yield "max_positives", True, TypeError, "max_positives must be an int or None; got bool"
    if "group" in loss.parameters:
        yield "group", "gloo", TypeError, "group must be a .* process group or None; got str"
    if "background" in loss.parameters:
        yield "background", 1.0, TypeError, "background must be an integer; got float"
        yield "background", None, TypeError, "background must be an integer; got NoneType"


def wrong_for_a_call(loss):
    if loss.is_softmax:
        yield "background", 4, ValueError, "background must be a channel, -4 to 3; got 4"
        yield "background", -5, ValueError, "background must be a channel, -4 to 3; got -5"
    if "avg_factor" in loss.parameters:
        yield "avg_factor", 0, ValueError, "avg_factor must be > 0 and finite; got 0"
        yield "avg_factor", -1, ValueError, "avg_factor must be > 0 and finite; got -1"
        yield "avg_factor", "2", TypeError, "avg_factor must be a number; got str"
        yield "avg_factor", torch.ones(4), ValueError, r"avg_factor must be a .*; got shape \(4,\)"
        unsigned = torch.tensor(2).to(torch.uint32)
        yield "avg_factor", unsigned, TypeError, "avg_factor must have a dtype that .*; got torch.uint32"
        yield "avg_factor", torch.tensor(True), TypeError, "avg_factor must have a real dtype; got torch.bool"
        yield "avg_factor", torch.ones((), device="meta"), ValueError, "avg_factor must be on the same .* got meta"


@each()
def test_bad_options(loss, device):
    inputs = make_inputs(loss, device=device)
    for name, value, error, message in [*wrong_options(loss), *wrong_for_a_call(loss)]:
        with pytest.raises(error, match=message):
            loss(**inputs | {name: value})
    for name, value, error, message in wrong_options(loss):
        with pytest.raises(error, match=message):
            loss.module(**loss.fixed | {name: value})
    if "per_image" in loss.parameters:
        flat = {name: value[0] if value.dim() > 1 else value[:0] for name, value in inputs.items()}
        with pytest.raises(ValueError, match=r"per_image=True needs images .*; got targets of shape \(8,\)"):
            loss(**flat, per_image=True)


@each()
def test_modules_store_options_show_them_and_call_the_function(loss, device):
    inputs = make_inputs(loss, device=device)
    parameters = inspect.signature(loss.module).parameters
    for options in ({}, loss.options):
        module = loss.module(**loss.fixed, **options, **loss.only_module).to(device)
        given = {name: parameter.default for name, parameter in parameters.items()} | loss.fixed | options
        shown = dict(re.findall(r"(\w+)=('\w*'|[^,()]+)", repr(module)))
        assert repr(module).startswith(f"{loss.module.__name__}(")
        assert list(shown) == [name for name in given if name in shown]
        assert shown.keys() >= {*loss.options, *loss.fixed}
        for name, text in shown.items():
            assert getattr(module, name) == given[name]
            assert text == (f"{given[name]:g}" if isinstance(given[name], float) else repr(given[name]))
        assert_equal(module(**inputs), loss(**inputs, **options))
