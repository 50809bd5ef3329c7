"""What every loss promises whatever its formula, over the table of contract.py; numbers are other tests' concern."""

import inspect
import math
import re
from itertools import chain

import pytest
import torch
from cases import DTYPES, assert_close, assert_equal
from contract import EMPTY, LOSSES, NUM_CLASSES, STATES, evaluate, make_inputs, make_labels, to_dense, total_of
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

import triton_rankloss as rankloss


def each(condition=lambda loss: True):
    return pytest.mark.parametrize("loss", [loss for loss in LOSSES if condition(loss)], ids=str)


def scopes(loss):
    """Options under which the whole batch, and each image, is ranked."""
    return ({}, {"per_image": True}) if "per_image" in loss.parameters else ({},)


def foreground(loss, inputs):
    """Which anchors are positive, bool."""
    labels = inputs[loss.targets]
    return (labels >= 0) & (labels < inputs["logits"].shape[-1] - loss.is_softmax)


def per_anchor(loss, inputs):
    """The same inputs, with the IoU of every anchor instead of every positive; NaN at all but positives."""
    anchors = foreground(loss, inputs)
    iou = torch.full(anchors.shape, torch.nan, dtype=inputs["iou"].dtype, device=anchors.device)
    iou[anchors] = inputs["iou"]
    return inputs | {"iou": iou}


def forms(loss, inputs):
    return [inputs, per_anchor(loss, inputs)] if loss.takes_iou_per_anchor else [inputs]


def to_dtype(inputs, dtype, names=None):
    return {
        name: value.to(dtype) if value.is_floating_point() and (names is None or name in names) else value
        for name, value in inputs.items()
    }


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


# Dtypes, forms of targets, memory layout


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
@pytest.mark.parametrize("num_classes", [NUM_CLASSES, 200, 257])
def test_labels_in_any_integer_dtype(loss, num_classes, device):
    """Also in one that cannot hold the number of channels: to int8, 200 would be -56, and to uint8, 257 would be 1."""
    labels = make_labels("mixed")
    labels[(labels < 0) | (labels == NUM_CLASSES)] = 2
    inputs = make_inputs(loss, labels=labels, device=device)
    inputs["logits"] = torch.randn(*labels.shape, num_classes + loss.is_softmax, dtype=torch.float64, device=device)
    expected = evaluate(loss, inputs)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
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


# Few candidates, or none


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


# NaN and infinity


@each(lambda loss: loss.is_scalar)
def test_nan_in_nan_out(loss, device):
    inputs = make_inputs(loss, device=device)
    for form in forms(loss, inputs):
        for name in form.keys() - {"logits", loss.targets}:
            place = foreground(loss, form) if form[name].dim() == 2 and name == "iou" else 0
            poisoned = form[name].clone()
            poisoned[place] = torch.nan
            assert total_of(loss(**form | {name: poisoned})).isnan(), name
    if not loss.takes_logits:
        return
    for delta in ({}, {"delta": 0.0}) if "delta" in loss.parameters else ({},):
        for anchors in (foreground(loss, inputs), inputs[loss.targets] == NUM_CLASSES):
            poisoned = inputs["logits"].masked_fill(anchors.unsqueeze(-1), torch.nan)
            if loss.error_driven:  # one is enough
                poisoned = inputs["logits"].clone()
                anchor = tuple(anchors.nonzero()[1].tolist())
                poisoned[(*anchor, max(0, inputs[loss.targets][anchor] % NUM_CLASSES))] = torch.nan
            outputs, gradients = evaluate(loss, inputs | {"logits": poisoned}, **delta)
            assert sum(outputs).isnan()
            assert gradients[0].isnan().any() if loss.error_driven else gradients[0][anchors].isnan().all()


@each(lambda loss: not loss.is_scalar)
def test_nan_stays_with_its_positive(loss, device):
    inputs = make_inputs(loss, device=device)
    (losses,), gradients = evaluate(loss, inputs)
    # Where the second positive is: its anchor in the logits, its row in what is given per positive.
    places = dict.fromkeys(inputs, (1,))
    if loss.takes_logits:
        places["logits"] = tuple(foreground(loss, inputs).nonzero()[1].tolist())
    for name in (name for name in inputs if name != loss.targets):
        for entry in inputs[name][places[name]].new_ones(inputs[name][places[name]].shape).nonzero().tolist():
            poisoned = inputs[name].clone()
            poisoned[(*places[name], *entry)] = torch.nan
            (found,), found_gradients = evaluate(loss, inputs | {name: poisoned})
            assert found.isnan().nonzero().tolist() == [[1]]
            for leaf, gradient, wanted in zip(loss.leaves, found_gradients, gradients):
                if leaf == name:
                    assert gradient[places[leaf]].isnan().any()
                gradient[places[leaf]] = wanted[places[leaf]]
                assert_equal(gradient, wanted)
            found[1] = losses[1]
            assert_equal(found, losses)


@each(lambda loss: loss.takes_logits)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_logits_count_as_very_large_ones(loss, dtype, device):
    values = torch.tensor([1e4, -1e4, torch.inf, -torch.inf, 0])
    labels = torch.tensor([0, 0, 1, 2, 3])
    inputs = make_inputs(loss, labels=labels, device=device)
    channels = [values, values.flip(0), values.roll(1), values.roll(2)][: inputs["logits"].shape[-1]]
    inputs["logits"] = torch.stack(channels, -1).to(device, dtype)
    outputs, gradients = evaluate(loss, inputs)
    assert all(part.isfinite().all() for part in (*outputs, *gradients))
    limit = min(torch.finfo(dtype).max, loss.large)
    expected = evaluate(loss, inputs | {"logits": inputs["logits"].clamp(-limit, limit)})
    if loss.large == 1e30:
        assert_equal((outputs, gradients), expected)
    for actual, wanted in zip((*outputs, *gradients), (*expected[0], *expected[1])):
        assert_close(actual, wanted)


# Run after run, and through what PyTorch wraps around a function


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


def checkpointed(use_reentrant):
    return lambda call: lambda *leaves: checkpoint(call, *leaves, use_reentrant=use_reentrant)


def compiled(backend):
    return lambda call: torch.compile(call, fullgraph=True, backend=backend)


WRAPPERS = {
    "torch.compile(fullgraph=True)": compiled("aot_eager"),
    "inductor": compiled("inductor"),
    "activation checkpointing": checkpointed(use_reentrant=False),
    "reentrant checkpointing": checkpointed(use_reentrant=True),
    "autocast": lambda call: call,
}


@each()
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_works_under(wrapper, loss, device):
    if wrapper == "inductor" and not loss.error_driven:
        pytest.skip("slow, and behind aot_eager the same for all: three losses stand for them")
    options = {"avg_factor": torch.tensor(3.0, device=device)} if "avg_factor" in loss.parameters else {}
    options |= {"task_contrastive_weight": 0.5} if "task_contrastive_weight" in loss.allowed else {}
    inputs = make_inputs(loss, device=device)
    cases = [(form, {}) for form in forms(loss, inputs)]
    if "compile" in wrapper or wrapper == "inductor":
        cases += [(inputs, scope) for scope in scopes(loss)[1:]]
        bounds = ({}, {"max_positives": 30}) if "max_positives" in loss.parameters else ({},)
        # 2.6 refuses outputs whose size is data in a full graph, unless told not to; up to 2.11 none was tried.
        bounds = bounds[-1:] if torch.torch_version.TorchVersion(torch.__version__) < (2, 11) else bounds
        cases = [(form, scope | bound) for form, scope in cases for bound in (bounds if not scope else bounds[-1:])]
        torch._dynamo.reset()  # every loss compiles the same function of contract.py
    for form, more in cases:
        expected = evaluate(loss, form, **options | more)
        with torch.autocast(device.type, torch.bfloat16, enabled="checkpointing" not in wrapper):
            found = evaluate(loss, form, wrap=WRAPPERS[wrapper], **options | more)
        for actual, wanted in zip((*found[0], *found[1]), (*expected[0], *expected[1])):
            assert_close(actual, wanted)


@each()
def test_double_backward_raises(loss, device):
    inputs = make_inputs(loss, device=device)
    message = "error-driven" if loss.error_driven else "second derivatives of this loss are not implemented"
    for name in loss.leaves:
        if loss.error_driven and name != "logits":
            continue  # an ordinary gradient, linear in the errors
        leaf = inputs[name].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(total_of(loss(**inputs | {name: leaf})), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            gradient.sum().backward()


# Options that several losses share


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


# Operators


class Recorder(TorchDispatchMode):
    """Keeps what the operators of the package are called with: each in every form that differs by more than numbers."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "triton_rankloss":
            form = tuple(type(arg) if isinstance(arg, (torch.Tensor, float)) else arg for arg in args)
            last = "backward" in func._schema.name or "transport" in func._schema.name  # not differentiated again
            kept = tree_map_only(
                torch.Tensor, lambda t: t.detach().clone().requires_grad_(t.requires_grad and not last), args
            )
            self.calls.setdefault(func._schema.name, {})[form] = kept
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def recorded():
    """{operator: argument tuples}, from all losses in all forms; a process group of one process is among them."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with Recorder() as recorder:
            for loss in LOSSES:
                options = {"avg_factor": torch.tensor(3.0)} if "avg_factor" in loss.parameters else {}
                options |= {"task_contrastive_weight": 0.5} if "task_contrastive_weight" in loss.allowed else {}
                group = [{"group": torch.distributed.group.WORLD}] if "group" in loss.parameters else []
                bound = {"max_positives": 30} if "max_positives" in loss.parameters else {}
                first, *others = forms(loss, to_dtype(make_inputs(loss), torch.float32))
                for form, more in [
                    (first, {}),
                    *((form, {}) for form in others),
                    *((first, more) for more in [*(scope | bound for scope in scopes(loss)[1:]), *group, options]),
                ]:
                    evaluate(loss, form, **more)
                if "task_contrastive_weight" in loss.allowed:  # half precision takes one operator more
                    evaluate(loss, to_dtype(first, torch.float16), **options)
        yield recorder.calls
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("operator", sorted(name for name in OPDEFS if name.startswith("triton_rankloss::")))
def test_opcheck(operator, recorded, device):
    for arguments in recorded[operator].values():
        moved = tree_map_only(torch.Tensor, lambda t: t.detach().to(device).requires_grad_(t.requires_grad), arguments)
        torch.library.opcheck(OPDEFS[operator]._opoverload, moved)


# Bad arguments: the error names the argument and what it got


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
    if "detach_factors" in loss.parameters:
        yield "detach_factors", 1, TypeError, "detach_factors must be a bool; got int"
    if "background" in loss.parameters:
        yield "background", 1.0, TypeError, "background must be an integer; got float"
        yield "background", None, TypeError, "background must be an integer; got NoneType"


def wrong_for_a_call(loss):
    if loss.is_softmax:
        yield "background", 4, ValueError, "background must be a channel, -4 to 3; got 4"
        yield "background", -5, ValueError, "background must be a channel, -4 to 3; got -5"
    if "per_image" in loss.parameters:
        yield "per_image", 1, TypeError, "per_image must be a bool; got int"
    if "max_positives" in loss.parameters:
        yield "max_positives", 0, ValueError, "max_positives must be >= 1; got 0"
        yield "max_positives", 2.5, TypeError, "max_positives must be an int or None; got float"
    if "group" in loss.parameters:
        yield "group", "gloo", TypeError, "group must be a .* process group or None; got str"
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
