"""What every loss promises inside what PyTorch wraps around a function."""

import dataclasses
import functools
import warnings

import pytest
import torch
from cases import INTERPRETED, assert_close, assert_equal
from contract import each, evaluate, forms, make_inputs, make_labels, scopes, total_of
from torch.utils.checkpoint import checkpoint

import triton_rankloss as rankloss

OLD = torch.torch_version.TorchVersion(torch.__version__) < (2, 11)  # 2.6 was tried, 2.7 to 2.10 were not


@pytest.fixture(autouse=True)
def data_as_sizes(loss):
    """What an old PyTorch must be told, as docs/numerics.md says, where no `max_positives` bounds what is returned."""
    options = {"capture_dynamic_output_shape_ops": True} if OLD and "max_positives" not in loss.parameters else {}
    with torch._dynamo.config.patch(options):
        yield


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
    if wrapper == "inductor" and INTERPRETED:
        pytest.skip("an operator is to inductor what it is to aot_eager: the first pass has compiled around it")
    options = {"avg_factor": torch.tensor(3.0, device=device)} if "avg_factor" in loss.parameters else {}
    options |= {"task_contrastive_weight": 0.5} if "task_contrastive_weight" in loss.allowed else {}
    inputs = make_inputs(loss, device=device)
    cases = [(form, {}) for form in forms(loss, inputs)]
    if "compile" in wrapper or wrapper == "inductor":
        cases += [(inputs, scope) for scope in scopes(loss)[1:]]
        bounds = ({}, {"max_positives": 30}) if "max_positives" in loss.parameters else ({},)
        bounds = bounds[-1:] if OLD else bounds
        cases = [(form, scope | bound) for form, scope in cases for bound in (bounds if not scope else bounds[-1:])]
        cases = [cases[0], cases[-1]] if INTERPRETED else cases  # the others differ in what the first pass has traced
        torch._dynamo.reset()  # every loss compiles the same function of contract.py
    for form, more in cases:
        expected = evaluate(loss, form, **options | more)
        with torch.autocast(device.type, torch.bfloat16, enabled="checkpointing" not in wrapper):
            found = evaluate(loss, form, wrap=WRAPPERS[wrapper], **options | more)
        for actual, wanted in zip((*found[0], *found[1]), (*expected[0], *expected[1])):
            assert_close(actual, wanted)


@each()
@pytest.mark.skipif(INTERPRETED, reason="of checks and of metadata, which the first pass has traced")
@pytest.mark.parametrize(("called", "dynamic"), [("function", True), ("module", None)])
def test_compiles_while_sizes_and_options_change(called, dynamic, loss, device):
    """Numbers are symbols to a compiler that has seen, or is told, that they change: checks must take them."""
    torch._dynamo.reset()
    numbers = {name: float(value) for name, value in loss.options.items() if name in loss.allowed}
    integers = {"max_positives": 30, "background": 3, "avg_factor": 5}.items()
    numbers |= {name: value for name, value in integers if name in loss.parameters}
    module = loss.module(**loss.fixed, **loss.only_module).to(device)
    in_module = [name for name in numbers if called == "module" and name in vars(module)]
    backend = "inductor" if loss.function is rankloss.ap_loss else "eager"  # one stands for all: inductor is slow
    compile_ = functools.partial(torch.compile, fullgraph=True, dynamic=dynamic, backend=backend)
    if called == "module":
        compiled = dataclasses.replace(loss, function=compile_(module), fixed={})
    else:
        compiled = dataclasses.replace(loss, function=compile_(loss.function))
    for num_anchors, factor in ((8, 1), (6, 0.9)):
        inputs = make_inputs(loss, labels=make_labels("mixed")[:, :num_anchors], device=device)
        options = {name: value * factor if isinstance(value, float) else value for name, value in numbers.items()}
        options |= {name: options[name] + num_anchors for name in ("max_positives", "avg_factor") if name in options}
        for name in in_module:
            setattr(module, name, options[name])
        found = evaluate(compiled, inputs, **{k: v for k, v in options.items() if k not in in_module})
        expected = evaluate(loss, inputs, **options)
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


@each()
def test_forward_mode_is_refused(loss, device):
    """It would read 0: what is differentiated stands in operators, which know backward alone."""
    inputs = make_inputs(loss, device=device)
    for name, value in inputs.items():
        if not value.is_floating_point():
            continue

        def total(x, name=name):
            return total_of(loss(**inputs | {name: x}))

        with pytest.raises(RuntimeError, match=f"{name} carries a tangent: the losses have no forward-mode derivative"):
            torch.func.jvp(total, (value,), (value,))
        with pytest.raises(RuntimeError, match=r"torch\.func\.jacfwd"):
            torch.func.jacfwd(total)(value)
        with torch.autograd.forward_ad.dual_level():
            total(value)  # without a tangent, as anywhere
            with pytest.raises(RuntimeError, match=f"{name} carries a tangent"):
                total(torch.autograd.forward_ad.make_dual(value, value))


@each()
def test_functional_transforms(loss, device):
    """vmap is a loop with the right gradient; grad of torch.func, which PyTorch's operators refuse, is an error."""
    inputs = make_inputs(loss, device=device)
    name = loss.leaves[0]

    def total(x):
        return total_of(loss(**inputs | {name: x}))

    batch = torch.stack([inputs[name], 0.9 * inputs[name]]).requires_grad_()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        found = torch.func.vmap(total)(batch)
    expected = torch.stack([total(x) for x in batch])
    assert_equal(found, expected)
    assert_equal(torch.autograd.grad(found.sum(), batch), torch.autograd.grad(expected.sum(), batch))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(total)(inputs[name])
