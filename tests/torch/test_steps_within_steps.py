"""Hooks, closures and rates that step the optimizer while it steps: the outer step keeps its own gradients."""

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch_twins import Twins, randn, random_rows

SHAPES = [(4,)] * 5 + [(170, 100), (20, 3)]
HOOKS = ["register_step_pre_hook", "register_step_post_hook"]


def gradients(seed):
    return [random_rows(s, 4, seed=seed) if s == (20, 3) else randn(*s, seed=seed + k) for k, s in enumerate(SHAPES)]


def twins_of(groups=1, **options):
    twins = Twins(*(randn(*shape, seed=k) for k, shape in enumerate(SHAPES[:5] if groups > 1 else SHAPES)), **options)
    for k in range(1, groups):
        for j in range(5):
            twins.add_group(randn(4, seed=10 * k + j))
    return twins


def nested(optimizer, parameters, seed):
    """Take one step with other gradients, then put the gradients back."""
    before = [p.grad for p in parameters]
    for k, p in enumerate(parameters):
        grad = random_rows(p.shape, 4, seed=seed) if p.shape == (20, 3) else randn(*p.shape, seed=seed + k)
        p.grad = grad.to_dense() if isinstance(optimizer, torch.optim.RMSprop) else grad
    optimizer.step()
    for p, grad in zip(parameters, before, strict=True):
        p.grad = grad


@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}], ids=["default", "momentum"])
def test_hooks_that_step(register, options):
    twins = twins_of(**options)
    twins.step(*gradients(0))
    twins.step(*gradients(1))
    for parameters, optimizer in ((twins.ours, twins.opt), (twins.theirs, twins.peer)):
        nests = [2]

        def hook(opt, *_, parameters=parameters, nests=nests):
            if nests:
                twins.opt.flush()  # avoids the warning of rows that nobody has read
                nested(opt, parameters, 10 * nests.pop())
                twins.opt.flush()

        getattr(optimizer, register)(hook)
    for t in range(2, 5):
        twins.opt.flush()
        twins.step(*gradients(t))
    twins.check()


def test_a_closure_that_steps():
    twins = twins_of()
    for t in range(3):
        twins.give(*gradients(t))
        for parameters, optimizer in ((twins.ours, twins.opt), (twins.theirs, twins.peer)):
            optimizer.step(lambda p=parameters, o=optimizer, t=t: nested(o, p, 10 + t))
    twins.check()


def test_hooks_of_tensors_that_step():
    # as when the optimizer steps in the backward pass
    twins = Twins(*(randn(4, seed=k) for k in range(6)), momentum=0.9)
    for parameters, optimizer in ((twins.ours, twins.opt), (twins.theirs, twins.peer)):
        for p in parameters:
            p.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
        for _ in range(3):
            sum((p.square() * k).sum() for k, p in enumerate(parameters, 1)).backward()
            optimizer.zero_grad()
    twins.check()


class Rate:
    """Learning rate that takes a step when it is read."""

    def __init__(self, step):
        self.step = step

    def __float__(self):
        step, self.step = self.step, lambda: None
        step()
        return 0.02

    def __ge__(self, other):
        return float(self) >= other


def test_a_learning_rate_that_steps():
    # in the second group, after the first was checked
    twins = twins_of(groups=2)
    grads = [randn(4, seed=k) for k in range(10)]
    for _ in range(3):
        twins.step(*grads)
    twins.give(*grads)
    for parameters, optimizer in ((twins.ours, twins.opt), (twins.theirs, twins.peer)):
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        if optimizer is twins.peer:
            nested(optimizer, parameters, 50)
        else:
            twins.opt.param_groups[1]["lr"] = Rate(lambda p=parameters, o=optimizer: nested(o, p, 50))
    twins.step()
    twins.check()
