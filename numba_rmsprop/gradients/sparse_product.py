"""A gradient that is a product of a sparse matrix and a short dense one, and is never formed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.storage import computed_in
from ..arrays.variables import FloatArray, as_array
from .bags import as_bags, as_bags_of_matrix, as_weights, sources_of
from .indexed_slices import MAX_ENTRIES, IndexedSlices, as_indices


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SparseProduct:
    r"""The gradient ``matrix.T @ values``, summed for each row within the step and never formed.

    Most sparse gradients are such products. Where example ``b`` has read the sum of rows ``matrix[b]`` of a table, and
    ``values[b]`` is the gradient of that sum, this is the gradient of the table. Its step has the bits of a step with
    ``IndexedSlices(weights[:, None] * values[sources], indices)``, whose array of a row for each entry is never made.

    Parameters
    ----------
    matrix : scipy.sparse array or matrix, shape (examples, rows)
        How much of each row every example has read. Its numbers are of the dtype of the values, or integers or
        booleans. Rows of the table that have a stored entry are touched, also where it is 0.
    values : array_like, shape (examples, \*row_shape)
        The gradient of each example's sum, of the variable's dtype; shape (examples,) for a 1-D variable.

    Attributes
    ----------
    values : ndarray
        As above.
    indices : ndarray of int64, shape (n,)
        The row of each entry of the matrix.
    sources : ndarray of int32, shape (n,)
        Its example.
    weights : ndarray, shape (n,), or None
        Its number; None stands for ones.
    rows : int or None
        The number of columns of the matrix, which must be the number of rows of the variable.

    Raises
    ------
    TypeError
        If ``matrix`` is none of scipy.sparse, or its dtype is another than that of the values.
    ValueError
        If the values are not one for each example.

    See Also
    --------
    from_bags : The same from indices and offsets, as torch.nn.EmbeddingBag has them.
    from_entries : The same from the arrays of the entries, as skip-gram has them.

    Examples
    --------
    A linear model of one sparse example with features 7 and 2, of which the residual is 0.5:

    >>> from numba_rmsprop import RMSprop
    >>> import scipy.sparse
    >>> X = scipy.sparse.csr_array(([1.0, 3.0], ([0, 0], [7, 2])), (1, 10))
    >>> w = np.zeros(10)
    >>> RMSprop(0.1).apply_gradients([(SparseProduct(X, np.array([0.5])), w)])
    1
    >>> w.round(4)[[2, 7]]
    array([-0.3162, -0.3162])
    """

    values: FloatArray
    indices: NDArray[np.int64]
    sources: NDArray[np.int32]
    weights: FloatArray | None
    rows: int | None

    def __init__(self, matrix: Any, values: ArrayLike) -> None:
        grads = as_array(values, "values of SparseProduct")
        bags, rows = as_bags_of_matrix(matrix, "matrix of SparseProduct", computed_in(grads.dtype))
        parts = bags.indices, sources_of(bags), bags.weights
        self._set(grads, *parts, rows=rows, examples=len(bags.offsets) - 1)

    @classmethod
    def from_bags(
        cls,
        values: ArrayLike,
        indices: ArrayLike,
        offsets: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        mode: str = "sum",
        *,
        include_last_offset: bool = False,
    ) -> Self:
        r"""Return the gradient of a table of which bags of rows were pooled, as by torch.nn.EmbeddingBag.

        Parameters
        ----------
        values : array_like, shape (bags, \*row_shape)
            The gradient of each bag's sum or mean.
        indices : array_like of int, shape (n,) or (bags, rows of each)
            The rows of the bags, one bag after the other. Rows may repeat, also within a bag.
        offsets : array_like of int, shape (bags,), optional
            Where each bag begins; None only where ``indices`` have two axes. Bags may be empty.
        weights : array_like, of the shape of ``indices``, optional
            A factor for each entry, of the dtype of the values; with the mode "sum".
        mode : {"sum", "mean"}, default "sum"
            What was done with the rows of a bag.
        include_last_offset : bool, default False
            Whether ``offsets`` have one item more, the number of indices, as ``indptr`` of a CSR matrix.

        Raises
        ------
        TypeError
            If indices or offsets are not integers, or the weights of another dtype than the values.
        ValueError
            If shapes do not fit, or offsets fall, do not start at 0 or reach beyond the indices.

        Examples
        --------
        >>> product = SparseProduct.from_bags(np.ones((2, 3)), [4, 1, 4], offsets=[0, 2])
        >>> product.sources
        array([0, 0, 1], dtype=int32)
        """
        grads = as_array(values, "values of SparseProduct")
        dtype = computed_in(grads.dtype)
        found = as_bags(indices, offsets, weights, mode, include_last_offset=include_last_offset, dtype=dtype)
        if found.mean and len(grads) == len(found.offsets) - 1:
            counts = np.maximum(np.diff(found.offsets), 1).astype(dtype)
            grads = grads / counts.reshape(-1, *[1] * (grads.ndim - 1))
        made = cls.__new__(cls)
        made._set(grads, found.indices, sources_of(found), found.weights, rows=None, examples=len(found.offsets) - 1)
        return made

    @classmethod
    def from_entries(
        cls, values: ArrayLike, indices: ArrayLike, sources: ArrayLike, weights: ArrayLike | None = None
    ) -> Self:
        r"""Return the gradient whose entry ``i`` is ``weights[i] * values[sources[i]]``, at row ``indices[i]``.

        Parameters
        ----------
        values : array_like, shape (examples, \*row_shape)
            The gradients of examples.
        indices, sources : array_like of int, shape (n,)
            The row and the example of each entry.
        weights : array_like, shape (n,), optional
            The factor of each, of the dtype of the values.

        Raises
        ------
        TypeError, ValueError
            As for :meth:`from_bags`.
        IndexError
            If a source is no example.

        Examples
        --------
        Skip-gram: two words in the context of each center.

        >>> SparseProduct.from_entries(np.ones((2, 5)), indices=[8, 9, 9, 7], sources=[0, 0, 1, 1])
        <SparseProduct: 4 entries, values float64 (2, 5)>
        """
        made = cls.__new__(cls)
        made._set(values, indices, sources, weights, rows=None, examples=None)
        return made

    def to_slices(self) -> IndexedSlices:
        """Return the entries written out, of which a step has the same bits.

        Examples
        --------
        >>> SparseProduct.from_bags([[1.0, 2.0]], [7, 7], [0], [0.5, 3.0]).to_slices().values
        array([[0.5, 1. ],
               [3. , 6. ]])
        """
        entries = self.values[self.sources]
        if self.weights is not None:
            entries = entries * self.weights.reshape(-1, *[1] * (entries.ndim - 1))
        return IndexedSlices(entries, self.indices)

    def with_values(self, values: FloatArray) -> Self:
        """Return the product of the same matrix and other values."""
        made = self.__class__.__new__(self.__class__)
        made._set(values, self.indices, self.sources, self.weights, rows=self.rows, examples=len(self.values))
        return made

    def _set(
        self,
        values: ArrayLike,
        indices: ArrayLike,
        sources: ArrayLike,
        weights: ArrayLike | None,
        *,
        rows: int | None,
        examples: int | None,
    ) -> None:
        grads = as_array(values, "values of SparseProduct")
        if grads.ndim == 0 or (examples is not None and len(grads) != examples):
            wanted = "examples" if examples is None else examples
            raise ValueError(
                f"values of SparseProduct: expected shape ({wanted}, ...), one for each example, got {grads.shape}"
            )
        places = as_indices(indices, "indices of SparseProduct")
        origins = as_indices(sources, "sources of SparseProduct")
        if places.ndim != 1 or origins.shape != places.shape:
            raise ValueError(
                f"sources of SparseProduct: expected one for each index, shape (n,), got {origins.shape} for indices "
                f"of shape {places.shape}"
            )
        if max(len(places), len(grads)) > MAX_ENTRIES:
            raise ValueError(
                f"SparseProduct: expected at most {MAX_ENTRIES:,} entries and examples, got {len(places):,} and "
                f"{len(grads):,}"
            )
        if origins.size and not (origins.min() >= 0 and origins.max() < len(grads)):
            first = int(np.argmax((origins < 0) | (origins >= len(grads))))
            raise IndexError(f"sources[{first}] is {origins[first]}; expected 0 <= source < {len(grads)}")
        factors = None if weights is None else as_weights(weights, places.shape, computed_in(grads.dtype))
        object.__setattr__(self, "values", grads)
        object.__setattr__(self, "indices", places.astype(np.int64, copy=False))
        object.__setattr__(self, "sources", origins.astype(np.int32, copy=False))
        object.__setattr__(self, "weights", factors)
        object.__setattr__(self, "rows", rows)

    def __repr__(self) -> str:
        """Return sizes and dtypes, and not the numbers."""
        rows = "" if self.rows is None else f" of {self.rows} rows"
        return f"<SparseProduct: {len(self.indices)} entries{rows}, values {self.values.dtype} {self.values.shape}>"
