"""Hypothesis strategies for training runs: variants, gaps, duplicates, kinds of gradients, changing rates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
from hypothesis import strategies as st
from reference import Reference, assert_close, densified

from numba_rmsprop import IndexedSlices, RMSprop, SparseProduct

VARIANTS = [(momentum, centered) for momentum in (False, True) for centered in (False, True)]
DTYPES = (np.float32, np.float64)
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
SPARSE_KINDS = ("rows", "product", "csr", "csc", "coo", "bsr", "lil", "dok", "csr_matrix")


@dataclass
class Step:
    """One call of apply_gradients: its gradient, and the hyperparameters then."""

    kind: str
    indices: list[int]
    seed: int
    lr: float
    rho: float
    momentum: float


@dataclass
class Run:
    """A variable, an optimizer's options, and its steps."""

    shape: tuple[int, ...]
    dtype: type
    momentum: bool
    centered: bool
    weight_decay: float
    clips: dict[str, float]
    lazy: bool
    constant: bool
    by_row: bool = False
    family: dict[str, bool | float] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def optimizer(self, now):
        """Return an optimizer whose hyperparameters are those of the step ``now[0]``."""
        functions = self.functions(now)
        rho, momentum = self.constants() if self.constant else (functions["rho"], functions["momentum"])
        return RMSprop(
            functions["learning_rate"],
            rho=rho,
            momentum=momentum if self.momentum else 0.0,
            epsilon=1e-3,
            centered=self.centered,
            weight_decay=self.weight_decay,
            sparse_update="lazy" if self.lazy else "exact",
            state="rowwise" if self.by_row else "elementwise",
            **self.family,
            **self.clips,
        )

    def functions(self, now):
        """Return the functions that give the hyperparameters of the step ``now[0]``, by their names."""

        def learning_rate():
            return now[0].lr

        def rho():
            return now[0].rho

        def momentum():
            return now[0].momentum

        return {function.__name__: function for function in (learning_rate, rho, momentum)}

    def constants(self):
        first = self.steps[0]
        return first.rho, first.momentum or 0.9

    def reference(self, var):
        return Reference([var], momentum=self.momentum, centered=self.centered, by_row=self.by_row, **self.family)

    def reference_step(self, reference, step, dense, touched=None):
        rho, momentum = self.constants() if self.constant else (step.rho, step.momentum)
        reference.step(
            [dense],
            lr=step.lr,
            rho=rho,
            momentum=momentum,
            epsilon=1e-3,
            weight_decay=self.weight_decay,
            touched=None if touched is None else [touched],
            **self.clips,
        )

    def variable(self):
        return np.random.default_rng(len(self.steps)).standard_normal(self.shape).astype(self.dtype)

    def check(self, opt, var, reference):
        tolerance = TOLERANCE[self.dtype]
        largest = {name: sizes[0] for name, sizes in reference.largest.items()}
        assert_close(var, reference.vars[0], tolerance, "var", largest["vars"])
        rms = reference.rms[0][:, 0] if self.by_row else reference.rms[0]
        np.testing.assert_allclose(opt.get_slot(var, "rms"), rms, rtol=tolerance, err_msg="rms")
        if self.momentum:
            assert_close(opt.get_slot(var, "momentum"), reference.mom[0], tolerance, "momentum", largest["mom"])
        if self.centered:
            assert_close(opt.get_slot(var, "mg"), reference.mg[0], tolerance, "mg", largest["mg"])
        if self.family.get("use_ema"):
            assert_close(opt.average(var), reference.averages[0], tolerance, "average", largest["averages"])


def gradient_of(step, shape, dtype):
    """Return the gradient of a step, as it is passed and as a dense array."""
    rng = np.random.default_rng(step.seed)
    if step.kind == "dense":
        dense = rng.standard_normal(shape).astype(dtype)
        return dense, dense
    indices = np.array(step.indices, np.int64)
    values = rng.standard_normal((len(indices), *shape[1:])).astype(dtype)
    if step.kind == "rows":
        return IndexedSlices(values, indices), densified(values, indices, shape)
    if step.kind == "product":
        sources = rng.integers(0, max(len(values), 1), len(indices))
        weights = rng.standard_normal(len(indices)).astype(dtype)
        entries = values[sources] * weights.reshape(-1, *[1] * (len(shape) - 1))
        return SparseProduct.from_entries(values, indices, sources, weights), densified(entries, indices, shape)
    # each touched row gets one to three entries, some twice
    rows = np.repeat(indices, 1 + indices % 3)
    columns = rng.integers(0, shape[1], len(rows))
    data = rng.standard_normal(len(rows)).astype(dtype)
    coo = scipy.sparse.coo_array((data, (rows, columns)), shape)
    dense = densified(data, (rows, columns), shape)
    if step.kind == "coo":
        return coo, dense
    if step.kind == "csr":
        return unsorted_csr(data, rows, columns, shape), dense
    if step.kind == "csr_matrix":
        return scipy.sparse.csr_matrix(coo), dense
    return coo.asformat(step.kind), dense


def unsorted_csr(data, rows, columns, shape):
    """Return a CSR array with duplicates, and with columns in no order."""
    order = np.argsort(rows, kind="stable")
    indptr = np.searchsorted(rows[order], np.arange(shape[0] + 1))
    return scipy.sparse.csr_array((data[order], columns[order], indptr), shape)


def touched_rows(grad, shape):
    touched = np.zeros(shape[0], bool)
    if isinstance(grad, IndexedSlices | SparseProduct):
        touched[grad.indices] = True
    elif scipy.sparse.issparse(grad):
        touched[grad.tocoo().coords[0]] = True
    else:
        touched[:] = True
    return touched


@st.composite
def runs(draw, kinds=(*SPARSE_KINDS, "dense"), lazy=False, clips=True, **fixed):
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    clip = st.sampled_from(
        [{}, {"clipvalue": 0.5}, {"clipnorm": 0.7}, {"global_clipnorm": 0.7}, {"clipvalue": 0.5, "clipnorm": 0.6}]
    )
    flags = {name: draw(st.booleans()) for name in ("momentum", "centered", "constant")} | fixed
    by_row = not flags["centered"] and draw(st.booleans())
    if by_row:  # also such as fill a vector of 64 bytes, or two, and leave something over
        columns = draw(st.sampled_from([columns, 16, 37]))
    family = {"nesterov": flags["momentum"] and draw(st.booleans()), "bias_correction": draw(st.booleans())}
    # Centered and corrected, the variance after one step is mere rounding, unless the mean square starts above 0.
    starts_at_0 = not (family["bias_correction"] and flags["centered"]) and draw(st.booleans())
    family["initial_scale"] = 0.0 if starts_at_0 else 1.0
    dtype = draw(st.sampled_from(DTYPES))
    if dtype is np.float64 and draw(st.booleans()):  # float32 would take as many kernels once more
        family |= {"use_ema": True, "ema_momentum": draw(st.sampled_from([0.0, 0.5, 0.9]))}
        family["ema_overwrite_frequency"] = draw(st.sampled_from([None, None, 1, 3]))
    run = Run(
        shape=(rows, columns),
        dtype=dtype,
        weight_decay=draw(st.sampled_from([0.0, 0.1])),
        clips=draw(clip) if clips else {},
        lazy=lazy,
        by_row=by_row,
        family=family,
        **flags,
    )
    # Few rows a step and many empty steps, so that gaps of every length come about.
    indices = st.one_of(st.just([]), st.lists(st.integers(0, rows - 1), max_size=6))
    for _ in range(draw(st.integers(1, 25))):
        run.steps.append(
            Step(
                kind=draw(st.sampled_from(kinds)),
                indices=draw(indices),
                # no two seeds are equal: after equal gradients the variance would be nothing but rounding
                seed=25 * draw(st.integers(0, 1000)) + len(run.steps),
                lr=draw(st.sampled_from([0.0, 0.01, 0.1])),
                rho=draw(st.sampled_from([0.5, 0.9, 0.99])),
                momentum=draw(st.sampled_from([0.0, 0.5, 0.9])),
            )
        )
    return run
