"""Clipping of the norms of dense and sparse gradients, against torch.nn.utils.clip_grad_norm_ on dense ones."""

import math

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch_twins import randn, random_rows, sparse

from numba_rmsprop.torch import Embedding, RMSprop

KINDS = ("clipnorm", "group_clipnorm", "global_clipnorm")


def gradients(step, dtype):
    """Return gradients: two that are stepped in a batch, a sparse one with duplicates, and a larger one."""
    return [
        randn(3, seed=step, dtype=dtype),
        randn(4, 2, seed=step + 1, dtype=dtype),
        random_rows((30, 5), 20, dtype, seed=step),
        randn(200, 100, seed=step + 2, dtype=dtype),
    ]


def parameters(dtype):
    return [nn.Parameter(torch.ones(grad.shape, dtype=dtype)) for grad in gradients(0, dtype)]


def in_groups(found):
    return [{"params": found[:2]}, {"params": found[2:]}]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_as_clipping_by_hand(kind, dtype, momentum):
    own, dense = parameters(dtype), parameters(dtype)
    opt = RMSprop(in_groups(own), 0.1, momentum=momentum, **{kind: 0.7})
    peer = torch.optim.RMSprop(in_groups(dense), 0.1, momentum=momentum)
    for step in range(4):
        grads = gradients(step, dtype)
        norms = []
        for parameter, other, grad in zip(own, dense, grads, strict=True):
            parameter.grad, other.grad = grad, grad.to_dense().clone()
            norms.append(other.grad.norm().item())
        opt.catch_up(own[2], torch.arange(30))
        opt.step()
        assert own[2].grad is grads[2]
        for together in {"clipnorm": [[p] for p in dense], "group_clipnorm": [dense[:2], dense[2:]]}.get(kind, [dense]):
            nn.utils.clip_grad_norm_(together, 0.7)
        peer.step()
        assert [opt.gradient_norms[parameter] for parameter in own] == pytest.approx(norms, rel=1e-5)
    opt.flush()
    for parameter, other in zip(own, dense, strict=True):
        torch.testing.assert_close(parameter, other, rtol=2e-5, atol=2e-5)  # PyTorch adds 1e-6 to the norm


@pytest.mark.parametrize("fused", [False, True])
def test_duplicates_and_bags_are_added_up_first(fused):
    table = Embedding(4, 1, _weight=torch.zeros(4, 1), sparse=True, fused=fused)
    opt = RMSprop(table.parameters(), 1.0, alpha=0.0, eps=0.0, clipnorm=math.inf)
    (table(torch.tensor([1, 1, 2])) * torch.tensor([[3.0], [-1.0], [1.0]])).sum().backward()
    opt.step()
    assert list(opt.gradient_norms.values()) == pytest.approx([math.sqrt(5)])


def test_an_infinite_limit_changes_no_bit():
    own, plain = parameters(torch.float32), parameters(torch.float32)
    opt, other = RMSprop(own, 0.1, global_clipnorm=math.inf), RMSprop(plain, 0.1)
    for step in range(3):
        for parameter, its, grad in zip(own, plain, gradients(step, torch.float32), strict=True):
            parameter.grad, its.grad = grad, grad
        opt.step()
        other.step()
    for parameter, its in zip(own, plain, strict=True):
        torch.testing.assert_close(parameter, its, rtol=0, atol=0)
    assert other.gradient_norms == {}


def test_groups_may_differ_and_change_their_minds():
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    opt = RMSprop([{"params": [first], "clipnorm": 1.0}, {"params": [second]}], 1.0, alpha=0.0, eps=1.0)
    for parameter in (first, second):
        parameter.grad = torch.full((1,), 3.0)
    opt.step()
    assert (first.item(), second.item()) == (-0.5, -0.75)
    assert opt.gradient_norms == {first: 3.0}
    opt.param_groups[0]["clipnorm"] = None
    opt.step()
    assert (first.item(), opt.gradient_norms) == (-1.25, {})


def test_a_parameter_that_comes_twice_is_clipped_twice():
    parameter = nn.Parameter(torch.zeros(1))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        opt = RMSprop([parameter, parameter], 1.0, alpha=0.0, eps=1.0, clipnorm=1.0)
    parameter.grad = torch.full((1,), 3.0)
    opt.step()
    assert parameter.item() == -1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"clipnorm": 1.0, "global_clipnorm": 1.0},
            "expected one of clipnorm, group_clipnorm, global_",
        ),
        ({"clipnorm": -1.0}, "clipnorm: expected 0 <= clipnorm, or None, got -1.0"),
        ({"group_clipnorm": math.nan}, "group_clipnorm: expected 0 <= group_clipnorm"),
        ({"clipnrom": 1.0}, "unexpected keyword"),
    ],
)
def test_limits_that_there_are_not(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        RMSprop([nn.Parameter(torch.ones(3))], **options)


def test_a_global_limit_is_one_for_all_groups():
    groups = [{"params": [nn.Parameter(torch.ones(3))], "global_clipnorm": limit} for limit in (1.0, 2.0)]
    opt = RMSprop(groups)
    for group in groups:
        group["params"][0].grad = sparse([1], torch.ones(1), (3,))
    with pytest.raises(ValueError, match="global_clipnorm: expected the same in all groups"):
        opt.step()
    assert all(group["params"][0].eq(1).all() for group in groups)


def test_two_limits_of_a_group_are_refused_when_they_are_set():
    parameter = nn.Parameter(torch.ones(3))
    opt = RMSprop([parameter], clipnorm=1.0)
    parameter.grad = torch.ones(3)
    opt.param_groups[0]["global_clipnorm"] = 2.0
    with pytest.raises(ValueError, match="at most, got"):
        opt.step()
    assert parameter.eq(1).all()


def test_a_loaded_group_has_the_limit_that_it_was_saved_with():
    saved = RMSprop([nn.Parameter(torch.ones(3))], group_clipnorm=2.0).state_dict()
    del saved["param_groups"][0]["clipnorm"]
    opt = RMSprop([nn.Parameter(torch.ones(3))], clipnorm=1.0)
    opt.load_state_dict(saved)
    assert [opt.param_groups[0][kind] for kind in KINDS] == [None, 2.0, None]
    assert not opt.state


def test_a_global_limit_is_about_the_groups_that_have_it():
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    opt = RMSprop([{"params": [first], "global_clipnorm": 1.0}, {"params": [second], "clipnorm": 1.0}], 1.0, 0.0, 1.0)
    first.grad, second.grad = torch.full((1,), 3.0), torch.full((1,), 4.0)
    opt.step()
    assert (first.item(), second.item()) == (-0.5, -0.5)
