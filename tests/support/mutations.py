"""Slips that a change could bring in, by area, for tests/support/mutants.py.

A line with ``#`` names an area, and one with ``@`` a file of the package and the tests that find slips in it, as pytest
takes them. Each line with ``-`` is a slip: what stands once in the file, ``=>``, and what takes its place; without
``=>``, ``pass`` does. A line may end in between, as ``\\n``. Where no test can see a slip, ``=`` says why.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """A slip in one file, and the tests that must fail with it."""

    area: str
    file: str
    tests: str
    old: str
    new: str
    equivalent: str


def mutations() -> list[Mutation]:
    """Return all mutations."""
    found: list[Mutation] = []
    area = file = tests = ""
    for line in LIST.splitlines():
        sign, rest = line[:1], line[2:]
        if sign == "#":
            area = rest
        elif sign == "@":
            file, _, tests = rest.partition(" ")
        elif sign == "-":
            old, arrow, new = rest.replace("\\n", "\n").partition(" =>")
            found.append(Mutation(area, file, tests, old, new.removeprefix(" ") if arrow else "pass", ""))
        elif sign == "=":
            found[-1] = found[-1]._replace(equivalent=rest)
    return found


LIST = r"""
# rule
@ kernels/rmsprop.py stepping/test_dense.py::test_variants_equal_the_formulas
- numbers.rho * mg + numbers.one_minus_rho * grad => numbers.rho * mg + numbers.one_minus_rho * grad * grad
- np.sqrt(variance + numbers.epsilon_inside) + => np.sqrt(variance) + numbers.epsilon_inside +
@ kernels/rmsprop.py stepping/test_dense.py::test_centered_variance_below_zero_is_zero
- if variance < 0: => if variance < -1:
@ kernels/rmsprop.py stepping/test_exact.py::test_any_hyperparameter_may_change_alone
- return var * numbers.shrink - step => return (var - step) * numbers.shrink
@ kernels/rmsprop.py torch/test_dense.py::test_combinations
- else:\n            step = numbers.outer_rate * new_momentum => else:\n            step = new_momentum
- return grad + numbers.coupled_decay * var => return grad - numbers.coupled_decay * var
@ kernels/rmsprop.py stepping/test_infinities.py::test_rows_that_every_step_touches_and_infinite_momentum
- return numbers.coupled_decay != 0 => return numbers.coupled_decay >= 0
@ settings/settings.py stepping/test_exact.py::test_any_hyperparameter_may_change_alone
- shrink=1.0 - learning_rate * self.weight_decay => shrink=1.0 - self.weight_decay
@ settings/settings.py test_other_implementations.py::test_keras_three_steps
- inside = self.has_momentum if values["epsilon_in_sqrt"] is None => inside = True if values["epsilon_in_sqrt"] is None

# gaps
@ kernels/rmsprop.py stepping/test_exact.py::test_any_hyperparameter_may_change_alone
- second.var * first.drift + second.drift * first.momentum => first.var * second.drift + first.drift * second.momentum
@ kernels/skip_factors.py stepping/test_exact.py::test_any_hyperparameter_may_change_alone
- now - gap - 1 < runs[run, 0] => now - gap < runs[run, 0]
@ kernels/skip_factors.py stepping/test_exact.py::test_a_long_gap_under_a_changing_schedule_equals_dense
- if gap < table.shape[1]: => if gap <= table.shape[1]:
- run + 2 * width <= last: => run + 2 * width <= last + 1:
@ kernels/rmsprop.py stepping/test_infinities.py
- plain = factors.rms != 0 and factors.var != 0 and => plain = factors.var != 0 and
- drift_sign = 1.0 if momentum * outer_rate > 0 else np.nan => drift_sign = 1.0
- return product if product == product else x * sign => return product
@ kernels/rmsprop.py stepping/test_extreme_numbers.py::test_zeros_stay_zero_in_a_gap_in_which_a_decay_overflows
- if drift != 0 and momentum != 0: => if drift != 0:
@ state/skipped_steps.py stepping/test_exact.py::test_gaps_beyond_the_table
- settled = len(runs) == 1 or now - first >= TABLE_GAPS => settled = len(runs) == 1 or now > first
@ state/skipped_steps.py stepping/test_exact.py::test_a_long_gap_under_a_changing_schedule_equals_dense
- for run in range(len(runs) - 1): => for run in range(len(runs) - 2):
@ state/skipped_steps.py stepping/test_exact.py::test_a_full_history_is_flushed
- return self._count >= MAX_RUNS - 1 => return self._count >= MAX_RUNS
@ state/skipped_steps.py torch/test_sparse.py::test_a_momentum_of_0_for_a_while
- return any(bool((self.runs => return all(bool((self.runs

# clocks
@ kernels/rows.py stepping/test_exact.py::test_any_hyperparameter_may_change_alone
- clocks[row] = now + 1 => clocks[row] = now
@ kernels/rows.py stepping/test_exact.py::test_sparse_equals_dense
- start = clock if clock > floor else floor => start = clock
@ kernels/csr.py stepping/test_exact.py::test_sparse_equals_dense
- max(np.int64(clocks[row]), floor) => np.int64(clocks[row])
@ kernels/gather_and_flush.py stepping/test_exact.py::test_gather_returns_what_dense_would_hold
- clocks[row] = now => clocks[row] = now + 1
@ kernels/gather_and_flush.py runtime/test_launching.py::test_a_launch_gives_the_bits_of_a_serial_loop
- (worker + 1) * rows // workers) => (worker + 1) * (rows // workers))
@ state/slots.py stepping/test_exact.py::test_sparse_equals_dense
- , (setattr, self, "floor", steps)] => ]
@ state/slots.py stepping/test_exact.py::test_clocks_start_anew_before_they_overflow
- if self.steps + 1 >= CLOCK_LIMIT:\n            carry_out(self._add_restart)
@ state/slots.py stepping/test_exact.py::test_gather_returns_what_dense_would_hold
- calls.append((setattr, self, "history", self.history.fresh()))
= a longer history is slower and no other one
@ state/slots.py stepping/test_remembered_call.py
- self.small = False

# family
@ kernels/rmsprop.py stepping/test_family.py::test_as_optax
- numbers.outer_rate * new_momentum + numbers.step_rate * step => numbers.outer_rate * new_momentum
- square = numbers.mean_share * square
- learning_rate=numbers.learning_rate * root => learning_rate=numbers.learning_rate
- epsilon_inside=numbers.epsilon_inside * share => epsilon_inside=numbers.epsilon_inside
- epsilon_outside=numbers.epsilon_outside * root => epsilon_outside=numbers.epsilon_outside
@ settings/settings.py stepping/test_family.py::test_as_optax
- outer_rate=momentum if self.nesterov else 1.0 => outer_rate=1.0
@ settings/settings.py stepping/test_family.py::test_a_subclass_may_fix_an_option_in_its_body
- corrected=corrected if self.bias_correction => corrected=corrected if values["bias_correction"]
@ state/slot_arrays.py stepping/test_family.py::test_as_optax
- arrays[slot][...] = start
@ stepping/own_numbers.py stepping/test_family.py
- product = members[0].rho_product * numbers.of_rule.rho => product = numbers.of_rule.rho
- if product == 1: => if False:
@ stepping/step.py stepping/test_family.py
- own.rho_product, self.variable_options(own.name) => 1.0, self.variable_options(own.name)
- if self.corrects_bias and len({own.rho_product for own in batch.members}) > 1: => if False:
@ stepping/step.py settings/test_variable_options.py
- own.rho_product, self.variable_options(own.name) => own.rho_product, None
@ settings/settings.py settings/test_variable_options.py
- shrink = 1.0 - rate * self.weight_decay if options.decays else 1.0 => shrink = numbers.of_rule.shrink
@ optimizer.py settings/test_variable_options.py
- self.known.remembered.pop("plan", None)
@ files/checkpoint.py stepping/test_family.py
- slots.product[()] = entry["rho_product"]
@ distributed/saved_tables.py distributed/test_table_checkpoints.py
- slots.product[()] = first.variables[0]["rho_product"]
@ torch/steps.py torch/test_family.py
- shrink=1.0 - learning_rate * decay if apart else 1.0 => shrink=1.0
- step_rate=outer_rate if nesterov and has_momentum else 0.0 => step_rate=1.0 if nesterov and has_momentum else 0.0
- kind = own.dtype, frozenset(own.tensors), own.slots.rho_product => kind = own.dtype, frozenset(own.tensors), 1.0
@ torch/rmsprop.py torch/test_family.py
- kept = ("alpha_product", *SLOTS) if parameter.dtype in STORED_AS else ("alpha_product",) => kept = SLOTS
@ torch/parameter_state.py torch/test_family.py
- product * alpha ** (taken - at) if at <= taken => product if at <= taken
- bool(group["decoupled_weight_decay"]) and float(group["weight_decay"]) > 0 => bool(group["decoupled_weight_decay"])
@ torch/parts.py torch/test_norm_clipping.py
- if other is group => if True
- if other[kind] is not None] => if True]
- if len(limits) > 1: => if False:
@ stepping/norm_clipping.py stepping/test_norm_clipping.py
- or limit == math.inf => or False

# duplicates
@ kernels/duplicates.py stepping/test_remembered_call.py::test_a_hot_row_is_summed_in_order
- chains[second, 0] = i
- return -after if after != LAST else np.int64(-1) => return -after if after < 0 else np.int64(-1)
@ kernels/duplicates.py stepping/test_remembered_call.py::test_marks_are_gone_after_a_step
- seen[unsigned(indices[i]) >> unsigned(3)] = 0
@ kernels/rows.py stepping/test_exact.py::test_sparse_equals_dense
- clock = np.int64(chains[unsigned(second), 1]) => clock = now
@ kernels/duplicates.py stepping/test_exact.py::test_sparse_equals_dense
- for i in range(indices.size):\n        following[i] = 0
@ kernels/csr.py gradients/test_conversion.py::test_every_sparse_format
- sums[worker, indices[k]] = 0

# lean
@ kernels/rmsprop.py stepping/test_exact.py::test_sparse_equals_dense
- rms = numbers.rho * rms + numbers.one_minus_rho * square => rms = rms + numbers.one_minus_rho * square
@ kernels/rows.py stepping/test_exact.py::test_sparse_equals_dense
- *_caught_up(factors, *load_state(state, row, 0))) => *load_state(state, row, 0))
- mean += grad * grad * share
- j, found)\n        squares = squares + found * found => j, found)
@ kernels/rows.py torch/test_rowwise.py
- square = _enter_with_values(row, state, factors, packed, worker, entered)
@ kernels/state.py stepping/test_lean_tables.py
- mixed = builder.xor(builder.add(low, times(columns, COLUMN)), high) => mixed = high
- columns = builder.add(first, ir.Constant(vector, [*range(like.count)])) => columns = first
@ settings/form.py stepping/test_lean_tables.py
- f"{self.seed} {number} {name}" => f"{self.seed} {number}"
@ state/slots.py stepping/test_lean_tables.py
- self.as_rounded(state, number, copied_rows) => self.as_rounded(state, number)
@ kernels/hashing.py distributed/test_sharded_table.py::test_the_same_bits_on_any_number_of_ranks
- row = row * ranks + (rank - owner_of_first(row, ranks) + ranks) % ranks
@ kernels/float16.py stepping/test_lean_tables.py
- more = builder.add(_word(value, 0x7FFF), builder.and_(upper, _word(value, 1))) => more = _word(value, 0x8000)
- builder.and_(noise, _word(value, 0x1FFF)) => builder.and_(noise, _word(value, 0x0FFF))
- rounded = builder.select(is_small, => rounded = builder.select(builder.not_(is_small),
- builder.select(is_nan, quiet, rounded) => rounded
@ state/slots.py stepping/test_lean_tables.py
- if self.clocks is not None or self.rounds_at_random: => if self.clocks is not None:
- number = 2 * self.steps + catches_up => number = 0
@ state/slot_arrays.py stepping/test_lean_tables.py
- return self.by_row or (self.rounds_at_random and self.var.ndim > 0) => return self.by_row
@ gradients/rows.py stepping/test_lean_tables.py
- self.values.astype(computed_in(self.values.dtype), copy=False) => self.values
@ settings/settings.py stepping/test_lean_tables.py
- if state == "rowwise" and centered: => if False:
- if state_dtype is not None and rounding != "stochastic": => if False:
@ torch/parameter_state.py torch/test_rowwise.py
- and (group["state"] == "rowwise") == self.by_row => and True
- return by_row and SLOTS[key] in RMSPROP.slots_by_row and parameter.ndim > 1 => return by_row and parameter.ndim > 1

# products
@ kernels/duplicates.py gradients/test_sparse_product.py::test_the_bits_of_the_entries_written_out
- return np.int64(sources[unsigned(i)]) => return np.int64(sources[0])
- return weights[unsigned(i)] => return weights[0]
@ kernels/duplicates.py gradients/test_sparse_product.py::test_sums_of_rows_of_any_width
- _add_lanes(wide, j, => _add_lanes(wide, np.int64(0),
- _add_columns(j, worker => _add_columns(j + 1, worker
- j = min(j, columns - count)  # some => j = min(j, columns - count - j)  # some
@ kernels/rows.py gradients/test_sparse_product.py::test_the_bits_of_the_entries_written_out
- if clock < 0 or is_given(weights): => if clock < 0:
- grads, source = values, source_of(sources, i) => grads, source = values, source_of(sources, heads[0, 0])
@ kernels/norms.py gradients/test_sparse_product.py::test_the_bits_of_the_entries_written_out
- if second < 0 and not is_given(weights): => if second < 0:
- add_row(source_of(sources, first), => add_row(source_of(sources, 0),
@ kernels/row_dealing.py mpi/test_replicas.py::test_a_step_is_that_of_one_process_with_the_sum
- store_var(sums, place, j, load_grad(values, source, j) * weight) => store_var(sums, place, j, load_grad(values, i, j))
@ kernels/bags.py gradients/test_sparse_product.py
- elif bags.mean and end > begin + 1: => elif False:
- offsets[k] < before or offsets[k] > entries => offsets[k] > entries
- offsets[k] > entries or (k == 0 => (k == 0
- (k == 0 and offsets[k] != 0) => False
- return np.int64(-1) if before == entries else => return np.int64(-1) if before <= entries else
- least = share * (offsets[offsets.size - 1] => least = (share + 1) * (offsets[offsets.size - 1]
- _sum_lanes(wide, j, => _sum_lanes(wide, np.int64(0),
@ gradients/conversion.py gradients/test_sparse_product.py
- grad.rows is not None and grad.rows != len(var) => False
- rows.weights = readable(weights, occupied) => rows.weights = readable(weights[::-1], occupied)
- if len(shapes) > 1 or => if
- sources.min() >= 0 and sources.max() < len(grad.values) => sources.min() >= 0
- readable(values).reshape(len(values) => readable(values).reshape(len(indices)
@ gradients/rows.py gradients/test_sparse_product.py::test_what_is_not_finite_is_named
- self.refuse_infinite(values, begin, var, name) => self.refuse_infinite(values, 0, var, name)
- values = values * self.weights[part, np.newaxis] => values = values * 1
@ gradients/sparse_product.py gradients/test_sparse_product.py
- grads = grads / counts.reshape => grads = grads * counts.reshape
- origins.min() >= 0 and origins.max() < len(grads) => origins.max() < len(grads)
- origins.min() >= 0 and origins.max() < len(grads) => origins.min() >= 0
@ state/slots.py gradients/test_sparse_product.py::test_a_sparse_matrix_times_rows_that_are_behind
- held = self._add_catch_up(calls, bags.indices, None) => held = True
@ state/slots.py gradients/test_sparse_product.py::test_a_strided_table_of_three_axes_is_summed_when_it_is_behind
- carry_out(self._add_catch_up, bags.indices, copies)
@ stepping/gathering.py gradients/test_sparse_product.py::test_weights_where_the_sums_go_and_where_rows_are_caught_up
- weights = readable(weights, self.known.occupied)
- weights.flags.writeable and not np.may_share_memory(weights, out) => True
@ stepping/gathering.py gradients/test_sparse_product.py
- rows != len(var): => False:
@ torch/fused.py torch/test_fused.py
- if torch.is_grad_enabled():\n        raise => if False:\n        raise
- if is_captured(ctx.next_functions[0][0]): => if False:
- return np.array(inputs.detach().numpy().reshape(-1), np.int64) => return inputs.detach().numpy().reshape(-1)
- indices, sources = indices[kept], np.flatnonzero(kept).astype(np.int32) => sources = None
- indices, sources = indices[kept], sources[kept]
- grad = grad / torch.from_numpy(counts) => grad = grad * torch.from_numpy(counts)
- minlength=len(offsets) - 1), 1) => minlength=len(offsets) - 1), 2)
- check_ends(numbers, used, include_last_offset=include_last_offset)
- check_ends(offsets, len(indices), include_last_offset=True)  # NumPy => pass  # NumPy
- ctx.needs_input_grad[0] and ctx.weight.requires_grad => ctx.needs_input_grad[0]
- version_of(one.values) != one.version or =>
- if inputs.ndim > 1 or used < inputs.numel(): => if inputs.ndim > 1:
- and not is_transformed() =>
- check_invariants=True, is_coalesced => check_invariants=False, is_coalesced
- if before is None else sum(made, before) => if before is None else before
@ torch/gradients.py torch/test_fused.py
- begin + (np.arange(len(part[0])) if => 0 * begin + (np.arange(len(part[0])) if
- values.dtype is not own.dtype or values.shape[1:] => values.shape[1:]
@ torch/rmsprop.py torch/test_fused.py
- parameter.grad = None
@ torch/steps.py torch/test_fused.py
- grad = None if waiting else parameter.grad => grad = parameter.grad
= reading it makes the tensor, which takes longer and comes to the same
@ torch/embedding_collection.py torch/test_fused.py
- np.ascontiguousarray(ends[::bags]) => np.ascontiguousarray(ends[::1])
@ kernels/bags.py torch/test_fused.py
- indices[i] < 0 or indices[i] >= rows => indices[i] >= rows + 1
- stacked[i] = indices[i] + starts[feature] => stacked[i] = indices[i]

# clipping
@ kernels/clipping.py stepping/test_norm_clipping.py::test_mixed_gradients
- if grad < -clipvalue:\n        grad = -clipvalue
@ kernels/dense.py stepping/test_norm_clipping.py::test_mixed_gradients
- state, None, scales[k], packed, => state, None, packed[1], packed,
@ kernels/norms.py stepping/test_norm_clipping.py::test_mixed_gradients
- end):\n        wide = np.float64(clip(load_grad(grads, row, j), clipvalue)) => end):\n        wide = grads[row, j]
@ stepping/norm_clipping.py stepping/test_norm_clipping.py::test_not_a_number_is_not_clipped_away
- limit == math.inf else limit / norm => not norm else min(1.0, limit / norm)
@ stepping/norm_clipping.py stepping/test_norm_clipping.py -k order_of_variables
- sum(sorted(chain.from_iterable(squares))) => sum(chain.from_iterable(squares))
@ stepping/small_batch.py stepping/test_norm_clipping.py::test_a_small_variable_is_clipped_after_a_step_that_was_not
- if numbers is not latest or scale != 1.0: => if numbers is not latest:
@ settings/settings.py settings/test_hyperparameters.py::test_clips_are_settable_and_checked
- _refuse_both(values)
@ settings/settings.py stepping/test_norm_clipping.py::test_mixed_gradients
-  or self._values["global_clipnorm"] is not None =>

# norms
@ kernels/norms.py stepping/test_norm_clipping.py::test_the_bits_of_a_norm_depend_on_no_layout
- _add_squares(zero, end - (end - begin) % TERMS, end, flat, clipvalue, block, partial)
- if block * BLOCK < (row + 1) * columns: => if block * BLOCK <= (row + 1) * columns:
@ kernels/norms.py stepping/test_norm_clipping.py::test_duplicates_in_a_csr_array_count_once_in_a_norm
- sums[worker, indices[k]] = 0
@ kernels/norms.py stepping/test_norm_clipping.py::test_a_norm_of_both_dtypes_is_as_exact_as_float64
- for block in range(begin + 1, end): => for block in range(begin + 1, end - 1):
@ gradients/dense.py stepping/test_norm_clipping.py
- values = as_stored(self.values)\n        partial => values = self.values.ravel(order="K")\n        partial

# checks
@ kernels/csr.py gradients/test_conversion.py::test_the_first_column_that_there_is_not
- or indices[k] >= columns: => or indices[k] > columns:
@ kernels/numpy_layout.py gradients/test_conversion.py::test_refused_gradients_leave_every_byte
- (indices[i] >= rows) => (indices[i] > rows)
@ kernels/norms.py gradients/test_conversion.py::test_check_finite
- if not np.isfinite(flat[0, j]): => if np.isnan(flat[0, j]):
@ stepping/step.py test_optimizer.py::test_refused_memory
- refuse_duplicates(found)
@ arrays/variables.py arrays/test_occupied_memory.py state/test_known_variables.py
- np.maximum.accumulate(bounds[1]) => bounds[1]
@ arrays/variables.py test_optimizer.py::test_variables_whose_elements_overlap
- reach += stride * (length - 1)
@ arrays/variables.py test_optimizer.py::test_refused_memory
- if written and not var.flags.writeable: => if not written and not var.flags.writeable:
@ gradients/conversion.py gradients/test_conversion.py::test_gradients_in_the_memory_of_the_variable
- if not values.flags.aligned or occupied.reached_by(values): => if not values.flags.aligned:
@ gradients/scipy_sparse.py gradients/test_conversion.py::test_fewer_values_than_indices
- if bad == -2 or len(grad.data) < indptr[-1]: => if bad == -2:
@ gradients/indexed_slices.py arrays/test_occupied_memory.py
- converted.copy() if found & INDICES_OCCUPIED else converted => converted

# files
@ files/atomic_file.py files/test_faults_while_saving.py::test_a_file_is_on_the_disk_before_it_takes_its_name
- os.fsync(file.fileno())
- sync_folder(os.path.dirname(final))
@ files/atomic_file.py files/test_atomic_file.py::test_a_folder_is_on_the_disk_as_soon_as_it_is_made
- sync_folder(os.fspath(parent))
@ files/atomic_file.py files/test_atomic_file.py::test_a_file_that_is_replaced_keeps_its_permissions
- os.fchmod(descriptor, mode)
@ files/atomic_file.py files/test_faults_while_saving.py::test_a_full_disk_leaves_the_old_file
- os.unlink(temporary)
@ files/checkpoint.py runtime/test_signal_handlers.py::test_a_handler_amid_a_save_leaves_a_file_of_one_state
- partial(check_undisturbed, since), mark_saved) => on_rename=mark_saved)
@ files/checkpoint.py runtime/test_signal_handlers.py
- slots.changes = Changes() if has_changed(since) else changes => slots.changes = changes
@ files/checkpoint.py files/test_deltas.py
- or slots.small or slots.var.ndim == 0 => or slots.var.ndim == 0
@ files/checkpoint.py files/test_deltas.py::test_deltas_in_a_wrong_order_are_refused
- if file.follows != follows: => if not file.follows and follows:
@ files/safetensors_file.py files/test_faults_while_saving.py::test_any_flipped_bit_is_refused
- _verify(file, entries, metadata, path)
@ files/checkpoint_validation.py files/test_checkpoint.py::test_forged_files
- (clocks.min() >= 0 and clocks.max() <= steps) => clocks.min() >= 0
- (len(runs) and begins[0] <= floor) => len(runs)
@ state/changed_rows.py files/test_deltas.py::test_a_delta_holds_gathered_rows_once
- changed |= (block == self._since) & (current == 0)
@ state/changed_rows.py files/test_deltas.py
- after._before_flushes = self.rows(clocks)
@ files/checkpoint_manager.py files/test_checkpoint_manager.py
- whole[-self.keep :] => whole[-self.keep - 1 :]
@ files/checkpoint_manager.py files/test_checkpoint_manager.py::test_deltas_are_kept_with_what_they_go_on_from
- while first > 0 and files[first].name.endswith(DELTA_ENDING):\n            first -= 1

# settings
@ schedules.py settings/test_schedules.py::test_values
- step -= self.warmup_steps
@ schedules.py settings/test_schedules.py
- max(1, math.ceil(_elapsed(step, self.decay_steps))) => (1 + math.floor(_elapsed(step, self.decay_steps)))
@ schedules.py settings/test_schedules.py::test_restarts_happen_at_their_step
- while self._start(period + 1) <= elapsed: => while self._start(period + 1) < elapsed:
@ settings/hyperparameters.py test_other_implementations.py::test_keras_learning_rate_decay
- (1.0 + decay * step) => (1.0 + decay * (step + 1))
@ settings/settings.py test_other_implementations.py::test_keras_learning_rate_decay
- if values["decay"] == 0 and not any(map(callable => if not any(map(callable
@ settings/settings.py stepping/test_remembered_call.py::test_settings_changed_between_calls_take_effect
- self._constant_numbers: StepNumbers | None = None
@ settings/settings.py settings/test_hyperparameters.py::test_momentum_cannot_go
- if has_momentum != self.has_momentum: => if has_momentum > self.has_momentum:
@ settings/hyperparameters.py settings/test_hyperparameters.py::test_refused_arguments
- and math.isfinite(number) => and not math.isnan(number)

# torch
@ torch/steps.py torch/test_pytorch_own_cases.py::test_a_parameter_twice_in_a_group_takes_two_sparse_steps
- work.has_repeats |= not may_batch
@ torch/steps.py torch/test_memory.py::test_versions_grow_with_each_step
- torch.autograd.graph.increment_version(written.versioned)  # Python => pass  # Python
@ torch/steps.py torch/test_training.py::test_options_of_a_group_may_change
- decay, momentum, maximize => decay, momentum
@ torch/steps.py torch/test_sparse.py::test_a_momentum_of_0_for_a_while
- rests=None if has_momentum else "momentum", => rests=None,
@ torch/steps.py torch/test_lazy_mode.py::test_weight_decay_is_refused
- if own.exact and group["weight_decay"] != 0 and => if own.exact and group["weight_decay"] < 0 and
@ torch/remembered_group.py torch/test_many_small_parameters.py
-                 or any(map(_is_neg, grads)) =>
@ torch/gradients.py torch/test_moved_memory.py::test_indices_in_the_memory_of_another_parameter_and_of_a_state
- entries, len(var), written.array) => entries, len(var), own.occupied.array)
@ torch/stale_rows.py torch/test_embedding.py::test_autograd_notices_rows_that_were_caught_up
- slots.catch_up(late)\n            self.note_write(parameter) => slots.catch_up(late)
@ torch/stale_rows.py torch/test_moved_memory.py torch/test_former_bugs.py
- if pointers != self._pointers: => if len(pointers) != len(self._pointers):
@ torch/stale_rows.py torch/test_stale_state.py
- if not self.was_changed(parameter):\n            self.settle(parameter) => self.settle(parameter)
@ torch/rmsprop.py torch/test_half_precision.py::test_the_state_keeps_its_float32
- ("alpha_product", *SLOTS) if parameter.dtype in STORED_AS else ("alpha_product",) => ("alpha_product",)

# ranks
@ kernels/row_dealing.py distributed/test_row_exchange.py::test_hot_neighbours_are_spread
- (rows[i] - block * ranks + owner_of_first(block, ranks)) % ranks => (rows[i] - block * ranks) % ranks
@ kernels/row_dealing.py distributed/test_row_exchange.py::test_passed_on_sums_have_the_order_of_the_batch
- while last >= 0 and i != last: => while last >= 0 and i >= 0 and following[i] != last:
@ kernels/row_dealing.py distributed/test_row_exchange.py::test_entries_are_added_up_in_order
- following[i] = following[first]
@ kernels/row_dealing.py distributed/test_initial_values.py
- ^ hashed((unsigned(indices[i]) >> unsigned(32)) + unsigned(0x9E3779B9)) =>
@ distributed/row_layout.py distributed/test_row_exchange.py::test_every_row_has_one_owner_and_shares_are_equal
- int((rank - first) % self.ranks < left) => int((rank - first) % self.ranks <= left)
@ distributed/exact_sum.py distributed/test_exact_sum.py
- np.add.at(high, exponents - LOWEST, digits >> 27) => high[exponents - LOWEST] += digits >> 27
@ distributed/manifest.py distributed/test_manifest.py
- if not whole: => if whole is None:
@ distributed/row_exchange.py distributed/test_row_exchange.py::test_a_request_lists_distinct_rows_by_owner
- places[sorting] = np.arange(len(rows)) => places[:] = sorting
- self.indices = indices.copy() => self.indices = indices
@ distributed/saved_tables.py distributed/test_table_checkpoints.py::test_damaged_checkpoints_are_refused
- if file.identity != identity: => if not file.identity:
@ distributed/shard.py distributed/test_sharded_table.py::test_clipped_norms_are_those_of_one_process
- if self.clips_norms: => if False:
@ mpi/ranks.py mpi/test_ranks.py::test_a_call_that_one_rank_refuses_does_nothing_on_any
- if refusals: => if refusals and error is not None:
@ mpi/replicas.py mpi/test_replicas.py::test_ranks_that_disagree_are_told_and_nothing_is_written
- self._compare(new, opt)
@ mpi/replicas.py mpi/test_replicas.py::test_a_step_is_that_of_one_process_with_the_sum
- np.where(everywhere[:, k, 0] == ROWS, math.prod(own.shape[1:]), 1) => 1

# fits
@ kernels/fits/stopping.py fitting/test_stopping.py
- lowest = mean < progress[LOWEST] => lowest = mean <= progress[LOWEST]
- progress[FLAT_STEPS] >= patience: => progress[FLAT_STEPS] > patience:
- else max(ftol * pace, precision) => else ftol * pace
- change = reference - mean if noisy else abs(reference - mean) => change = abs(reference - mean)
@ kernels/fits/step.py fitting/test_minimize_many.py
- scaled[0, j] = x[j] / scale[j]
@ kernels/fits/slopes.py fitting/test_minimize_many.py::test_central_differences_stay_within_the_bounds
- x[j] = min(here + step, scratch.upper[j]) => x[j] = here + step
@ kernels/fits/curves.py fitting/test_curve_fit_many.py::test_gtol_is_the_cosine_of_minpack
- squares[x.size] += first * residual**2 => squares[x.size] += residual**2
@ fitting/window_means.py fitting/test_scipy_method_sparse.py::test_the_norm_of_sparse_windows
- self._gradient[self._touched.indices()] = 0.0
@ fitting/iterate.py fitting/test_scipy_method_sparse.py::test_the_objective_sees_elements_that_momentum_moves
- if all_move:\n            self.optimizer.flush()
@ fitting/single_fit.py fitting/test_scipy_method_ends.py::test_budgets
- objective.nfev + objective.calls(self._iterate.x) > self._maxfev => objective.nfev >= self._maxfev
@ fitting/single_fit.py fitting/test_scipy_method_arguments.py::test_a_jac_that_returns_x_or_one_array_anew
- Dense(gradient.values.copy()) => Dense(gradient.values)
@ gradients/finite_differences.py gradients/test_finite_differences.py
- beside if self.bounds is None else np.clip(beside, *self.bounds) => beside
@ fitting/workers.py fitting/test_minimize_many_calls.py::test_workers_end_where_nobody_waits_for_them_any_more
- if any(map(threading.Thread.is_alive, threads)): => if not threads:

# launching
@ kernels/work_stealing.py runtime/test_launching.py::test_a_launch_gives_the_bits_of_a_serial_loop
- if item < (helped + 1) * items // workers: => if item <= (helped + 1) * items // workers:
- for turn in range(workers): => for turn in range(workers - 1):
@ runtime/launching.py runtime/test_processes.py::test_forks_before_and_after_a_launch_and_forks_of_forks
- serial_only |= not helped and _numba_has_threads()
@ runtime/launching.py runtime/test_helpers.py
- helpers.pool_of.cache_clear()
- account[JOBS_ALONE] -= 1
- if time.monotonic_ns() < account[UNTIL]: => if True:
- fixed, _asked_for_numba = int(threads) if not isinstance(threads, str) else None, => fixed, _asked_for_numba = None,
@ kernels/thread_pool.py runtime/test_helpers.py
- if share < end: => if share <= end:
- for turn in range(threads): => for turn in range(threads - 1):
- while get(pool, INSIDE) > 0: => while get(pool, INSIDE) > 9:
- if asleep > 0 and swap(pool, ASLEEP, asleep, asleep - 1):\n            ring(pool)
- + (ended - done) - worked => - worked
- put(pool, account + LOST, max(lost, -CREDIT)) => put(pool, account + LOST, lost)
- put(pool, account + UNTIL, ended + PATIENCE)
- takes = min(takes, before * 9 // 8 + 1000)
@ kernels/thread_pool.py runtime/test_helpers.py::test_a_helper_leaves_the_core_of_the_caller_and_stays_away
- put(pool, left, core + 1)
- or core != get(pool, CORE) or => or
- & ~(np.int64(1) << (core % 64)) => & ~np.int64(0)
@ runtime/interrupts.py runtime/test_interrupts.py::test_a_handler_that_was_set_meanwhile_stays
- if _signal.getsignal(number) is _note: => if callable(handler):
@ runtime/interrupts.py runtime/test_signal_handlers.py::test_two_signals_amid_a_step_are_both_handled
- if _held or _came:\n            _release()
@ runtime/interrupts.py runtime/test_interrupts.py -k after_a_timeout
- self.__exit__()
@ runtime/whole_calls.py runtime/test_whole_calls.py::test_calls_during_a_commit_are_refused
- if _writing: => if not taken:
@ runtime/whole_calls.py runtime/test_signal_handlers.py::test_a_handler_amid_a_call_comes_before_it_or_after
- return [(_looks.remove, sign), _INVALIDATE_LOOKS, _BEGIN] => return [(_looks.remove, sign), _BEGIN]
@ runtime/whole_calls.py runtime/test_signal_handlers.py::test_a_kernel_that_is_compiled_amid_a_step_holds_handlers_off
- if held: => if not held:
@ state/slots.py runtime/test_whole_calls.py::test_a_step_that_compiles_for_another_layout_holds_handlers_off
- calls.append((self.compiled.add, kind))\n        return True => return False
@ stepping/step.py runtime/test_whole_calls.py
-  and self._latest_thread != threading.get_ident() =>
@ kernels/numba_cache.py runtime/test_processes.py::test_code_for_other_types_counts_as_not_found
- if found is None or found.signature.args == tuple( => if found is None or tuple(
"""
