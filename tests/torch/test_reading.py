"""Rows that are behind are read in other ways than by a forward pass: right, or with a warning."""

import copy
import io
import pickle
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="numba_rmsprop.torch needs PyTorch")

from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.nn.utils import parametrize, prune
from torch_twins import Twins, assert_close, randn, random_rows, twin_of

from numba_rmsprop.torch import Embedding, EmbeddingBag, RMSprop

SHAPE, DTYPE = (20, 3), torch.float64
MOMENTUM = {"momentum": 0.9}
EVERY = torch.arange(20)


def steps(twins, when):
    for t in when:
        twins.step(random_rows(SHAPE, 2, DTYPE, seed=t))


def behind(**options):
    """Return twins whose state is behind with us, and with momentum their rows."""
    twins = Twins(randn(*SHAPE, dtype=DTYPE), **options)
    steps(twins, range(6))
    return twins


def modules(twins, kind="Embedding"):
    """Return our module over our table, and PyTorch's over the other."""
    made = {"Embedding": Embedding, "EmbeddingBag": EmbeddingBag}[kind](*SHAPE), getattr(nn, kind)(*SHAPE)
    for module, (table,) in zip(made, (twins.ours, twins.theirs), strict=True):
        module.weight = table
    return made


READERS = {
    "one tensor": lambda state: state["square_avg"],
    "get": lambda state: state.get("square_avg"),
    "values": lambda state: list(state.values())[1],
    "items": lambda state: dict(list(state.items()))["square_avg"],
    "dict": lambda state: dict(state)["square_avg"],
    "unpacked": lambda state: {**state}["square_avg"],
    "copy": lambda state: state.copy()["square_avg"],
    "joined": lambda state: (state | {})["square_avg"],
    "joined on the right": lambda state: ({} | state)["square_avg"],
    "setdefault": lambda state: state.setdefault("square_avg", None),
    "pop": lambda state: state.pop("square_avg"),
    "updated with": lambda state: (other := {}, other.update(state))[0]["square_avg"],
    "deepcopy": lambda state: copy.deepcopy(state)["square_avg"],
    "pickle": lambda state: pickle.loads(pickle.dumps(state))["square_avg"],
}


@pytest.mark.parametrize("options", [{}, MOMENTUM], ids=["default", "momentum"])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_the_state_is_current_however_it_is_read(read, options):
    twins = behind(**options)
    kept = twins.opt.state[twins.ours[0]]
    assert_close(read(kept), twins.peer.state[twins.theirs[0]]["square_avg"], 1e-12)


def test_a_kept_entry_is_current_after_more_steps():
    twins = behind(**MOMENTUM)
    entry = twins.opt.state[twins.ours[0]]
    steps(twins, range(6, 12))
    expected = twins.peer.state[twins.theirs[0]]
    assert entry is twins.opt.state[twins.ours[0]]
    assert entry == {**entry}
    assert_close(entry["momentum_buffer"], expected["momentum_buffer"], 1e-12)
    assert_close(twins.ours[0], twins.theirs[0], 1e-12)  # they are brought up to date together


def test_counting_the_steps_is_no_reading_of_rows():
    twins = behind()
    before = dict.__getitem__(twins.opt.state[twins.ours[0]], "square_avg").clone()
    assert twins.opt.state[twins.ours[0]]["step"] == 6
    assert "square_avg" in twins.opt.state[twins.ours[0]]
    assert torch.equal(dict.__getitem__(twins.opt.state[twins.ours[0]], "square_avg"), before)


def test_what_is_written_into_a_state_that_was_behind_counts():
    twins = behind(**MOMENTUM)
    for (p,), optimizer in ((twins.ours, twins.opt), (twins.theirs, twins.peer)):
        optimizer.state[p]["momentum_buffer"].mul_(0.5)
    steps(twins, range(6, 9))
    twins.check()


def test_states_are_saved_as_plain_dicts():
    twins = behind()
    saved = twins.opt.state_dict()
    assert type(saved["state"][0]) is dict
    for kept in (saved, twins.opt.state[twins.ours[0]]):
        file = io.BytesIO()
        torch.save(kept, file)
        file.seek(0)
        torch.load(file, weights_only=True)


@pytest.mark.parametrize("options", [{}, MOMENTUM], ids=["default", "momentum"])
def test_a_vocabulary_that_grows(options):
    twins = behind(**options)
    for parameters, optimizer in ((twins.ours, twins.opt), (twins.theirs, twins.peer)):
        state = optimizer.state.pop(parameters[0])
        for name in state.keys() - {"step"}:
            state[name] = torch.cat([state[name], torch.zeros(5, 3, dtype=DTYPE)])
        grown = nn.Parameter(torch.cat([parameters[0].detach(), randn(5, 3, dtype=DTYPE)]))
        parameters[0] = optimizer.param_groups[0]["params"][0] = grown
        optimizer.state[grown] = state
    for t in range(6, 12):
        twins.step(random_rows((25, 3), 4, DTYPE, seed=t))
    twins.check()
    assert len(twins.opt._steps.known) == 1  # the smaller table is let go


def average(module, kept):
    kept.lerp_(module.weight.detach(), 0.1)


def normalise(module, kept):
    module.weight.copy_(functional.normalize(module.weight, dim=1))


@pytest.mark.parametrize("use", [average, normalise])
def test_a_table_that_is_used_directly_between_steps(use):
    twins = behind(**MOMENTUM)
    kept = [table.detach().clone() for (table,) in (twins.theirs, twins.theirs)]
    for t in range(6, 14):
        steps(twins, [t])
        with torch.no_grad():
            for module, each in zip(modules(twins), kept, strict=True):
                use(module, each)
    assert_close(*kept, 1e-12)
    twins.check()


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize(
    "read",
    [
        lambda module: module.weight.data,
        lambda module: copy.deepcopy(module.weight),
        lambda module: functional.embedding(EVERY, module.weight),
        lambda module: prune.identity(module, "weight")(EVERY[:, None]).squeeze(),
    ],
    ids=["data", "deepcopy", "functional", "pruned"],
)
def test_other_ways_to_read_a_table(kind, read):
    ours, theirs = modules(behind(**MOMENTUM), kind)
    assert_close(read(ours), read(theirs), 1e-12)


def test_a_parametrized_table():
    twins = behind(**MOMENTUM)
    ours, theirs = modules(twins)
    for module in (ours, theirs):
        parametrize.register_parametrization(module, "weight", nn.Tanh())
    steps(twins, range(6, 9))
    assert_close(ours(EVERY), theirs(EVERY), 1e-12)


TRANSFORMS = {
    "vmap": lambda module, given: torch.vmap(module)(given),
    "grad": lambda module, given: torch.func.grad(lambda x: (module(given) * x).sum())(torch.ones(3, dtype=DTYPE)),
    "traced": lambda module, given: torch.fx.symbolic_trace(nn.Sequential(module))(given),
    "functional_call": lambda module, given: torch.func.functional_call(module, dict(module.named_parameters()), given),
    "detached": lambda module, given: torch.func.functional_call(
        module, {name: p.detach() for name, p in module.named_parameters()}, given
    ),
    "grad of the table": lambda module, given: torch.func.grad(
        lambda table: torch.func.functional_call(module, table, given).square().sum()
    )(dict(module.named_parameters()))["weight"].to_dense(),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_of_functions(transform):
    twins = behind(**MOMENTUM)
    ours, theirs = modules(twins)
    given = torch.tensor([[0, 1], [2, 3]])
    assert_close(transform(ours, given), transform(theirs, given), 1e-12)
    steps(twins, range(6, 9))
    twins.check()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_bags():
    ours, theirs = modules(behind(**MOMENTUM), "EmbeddingBag")
    given = torch.tensor([[[0, 1]], [[2, 3]]])
    assert_close(torch.vmap(ours)(given), torch.vmap(theirs)(given), 1e-12)


@pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])
def test_fake_indices_and_those_without_memory(kind):
    twins = behind(**MOMENTUM)
    ours, theirs = modules(twins, kind)
    given = torch.tensor([[0, 1], [2, 3]])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert ours(mode.from_tensor(given)).shape == theirs(mode.from_tensor(given)).shape
    steps(twins, range(6, 9))
    without_memory = copy.deepcopy(ours).to("meta")
    assert without_memory(given.to("meta")).shape == ours(given).shape
    assert_close(ours(given), theirs(given), 1e-12)


@pytest.mark.parametrize("then", ["flush", "flush one", "catch_up"])
def test_a_new_optimizer_makes_up_for_what_the_old_one_owes(then):
    twins = behind(**MOMENTUM)
    (table,) = twins.ours
    new = RMSprop([table], lr=0.01, momentum=0.5)
    if then == "catch_up":
        new.catch_up(table, EVERY)
    else:
        new.flush(*([table] if then == "flush one" else []))
    assert_close(table, twins.theirs[0], 1e-12)
    with torch.no_grad():
        table.fill_(5.0)
    module = Embedding(*SHAPE, _weight=table)
    assert (module(EVERY) == 5).all()


def test_another_optimizer_that_decays_weights():
    # its step reads the value of every row
    twins = behind(**MOMENTUM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        others = [kind(p, weight_decay=0.1) for kind, p in ((RMSprop, twins.ours), (torch.optim.RMSprop, twins.theirs))]
        both = twins.opt, twins.peer
        for t in range(6):
            twins.opt, twins.peer = others if t % 2 else both
            if t % 2:
                twins.step(randn(*SHAPE, dtype=DTYPE, seed=t))
            else:
                steps(twins, [t])
    both[0].flush()
    assert_close(twins.ours[0], twins.theirs[0], 1e-12)


def step_anew(table):
    table.grad = random_rows(SHAPE, 2, DTYPE)
    RMSprop([table]).step()


def write(table):
    with torch.no_grad():
        table.clamp_(-0.5, 0.5)


@pytest.mark.parametrize(
    "then",
    [
        lambda twins: steps(twins, [6]),
        lambda twins: modules(twins)[0](EVERY),
        lambda twins: twins.opt.flush(),
        lambda twins: twins.step(randn(*SHAPE, dtype=DTYPE)),
        lambda twins: step_anew(twins.ours[0]),
    ],
    ids=["sparse step", "forward", "flush", "dense step", "step of a new optimizer"],
)
def test_a_warning_of_rows_that_were_written_to_while_others_were_behind(then):
    twins = behind(**MOMENTUM)
    write(twins.ours[0])
    with pytest.warns(UserWarning, match=r"parameter 0 of group 0 .*was written to.*flush\(\).*catch_up") as told:
        then(twins)
    assert len(told) == 1
    assert Path(told[0].filename).is_relative_to(Path(__file__).parents[1])  # and neither PyTorch's nor the package's
    write(twins.ours[0])
    steps(twins, [7])  # once is enough


def test_a_step_that_the_warning_ends_has_not_begun():
    twins = behind(**MOMENTUM)
    (table,) = twins.ours
    write(table)
    before, new = table.detach().clone(), RMSprop([table])
    table.grad = random_rows(SHAPE, 2, DTYPE)
    with pytest.raises(UserWarning, match="was written to"):  # pytest makes it one
        new.step()
    assert torch.equal(table, before)
    assert table not in new.state


def test_no_warning_of_rows_that_were_caught_up_to_be_written_to():
    twins = behind(**MOMENTUM)
    (ours,), (theirs,) = twins.ours, twins.theirs
    rows = torch.tensor([3, 4])
    for t in range(6, 12):
        twins.opt.catch_up(ours, rows)
        with torch.no_grad():
            for table in (ours, theirs):
                table[rows] = functional.normalize(table[rows], dim=1)
        steps(twins, [t])
    twins.check()


def test_the_warning_of_a_plain_embedding_names_who_called(recwarn):
    table = nn.Embedding(20, 3, sparse=True)
    optimizer = RMSprop(table.parameters(), **MOMENTUM)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)  # wraps step
    for t in range(3):
        table(torch.tensor([t])).sum().backward()
        optimizer.step()
        scheduler.step()
    assert [(each.filename, "fall behind" in str(each.message)) for each in recwarn] == [(__file__, True)]


def test_a_table_of_another_state_is_not_confused_with_ours():
    twins = behind(**MOMENTUM)
    other = twin_of(twins.ours[0])
    assert_close(functional.embedding(EVERY, other), other, 0.0)
    module = Embedding(*SHAPE, _weight=other)
    assert torch.equal(module(EVERY), other)
