"""One kernel for an entire optimizer step, where bitsandbytes starts one per tensor.

bitsandbytes 0.50 updates each tensor of an adapter on its own: at 8B, r = 16, 448 calls
from Python, 16 ms in which the GPU has little to do. Its kernels work on blocks of 256
numbers. So neighbours in memory whose sizes are multiples of 256 can be updated as one
tensor: the blocks hold the same numbers, and the result is the same bit for bit.

Parameters, gradients and state stay tensors of their own, as views of a common buffer:
clipping, checkpoints and resuming see what they always saw.
"""

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from bitsandbytes.optim import optimizer as bnb

from course_utils.setup.patching import replaced

BLOCK = 256  # numbers that share a scale of the 8-bit state
_STATE = {"state1": 1, "state2": 1, "absmax1": BLOCK, "absmax2": BLOCK}


@torch.no_grad()
def lay_flat(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """Give parameters neighbouring memory; return gradients of 0 laid out likewise.

    The values stay. Each parameter begins at a multiple of BLOCK numbers. Whoever holds
    an address of a parameter, such as a CUDA graph, must be made after this call.
    """
    starts, totals = [], {}
    for parameter in parameters:
        kind = parameter.dtype, parameter.device
        starts.append(totals.get(kind, 0))
        totals[kind] = starts[-1] + -(-parameter.numel() // BLOCK) * BLOCK

    def buffers():
        return {
            (dtype, device): torch.zeros(total, dtype=dtype, device=device)
            for (dtype, device), total in totals.items()
        }

    values, gradients, views = buffers(), buffers(), []
    for parameter, start in zip(parameters, starts, strict=True):
        kind, place = (parameter.dtype, parameter.device), slice(start, None)
        size = parameter.numel()
        flat = values[kind][place][:size].view(parameter.shape)
        parameter.data = flat.copy_(parameter.data)
        views.append(gradients[kind][place][:size].view(parameter.shape))
    return views


@contextlib.contextmanager
def steps_at_once() -> Iterator[None]:
    """Within the context, bitsandbytes' optimizers update neighbours by one kernel."""
    init_state, update_step = (
        bnb.Optimizer2State.init_state,
        bnb.Optimizer2State.update_step,
    )
    plans = weakref.WeakKeyDictionary()  # optimizer: {number of its group: _Plan}

    def init(optimizer, group, parameter, gindex, pindex):
        for run in _runs(optimizer, group):
            members = [group["params"][index] for index in run]
            if pindex in run and not any(optimizer.state[p] for p in members):
                _lay_state_flat(optimizer, group, members, gindex, run[0], init_state)
                return
        init_state(optimizer, group, parameter, gindex, pindex)

    def update(optimizer, group, parameter, gindex, pindex):
        of_optimizer = plans.setdefault(optimizer, {})
        plan = of_optimizer.get(gindex)
        # A step goes through a group's parameters in order.
        begins = plan is None or pindex <= plan.at
        if begins and not (plan and plan.holds(optimizer)):
            plan = of_optimizer[gindex] = _plan(optimizer, group, gindex, init_state)
        plan.at = pindex
        stretch = plan.stretches.get(pindex)
        if stretch is None:
            if pindex not in plan.covered:
                update_step(optimizer, group, parameter, gindex, pindex)
            return
        stretch.update(optimizer, group, gindex, pindex, update_step)

    with (
        replaced(bnb.Optimizer2State, "init_state", init),
        replaced(bnb.Optimizer2State, "update_step", update),
    ):
        yield


@dataclass
class _Stretch:
    """Neighbours that one call updates.

    members: the parameters. gradients, state: theirs when this was made. whole: a
    tensor over all of them. flat_state: its state.
    """

    members: list
    gradients: list
    state: list
    addresses: list
    whole: torch.nn.Parameter
    flat_state: dict

    def holds(self, optimizer):
        return all(
            p.grad is gradient
            and p.data_ptr() == address
            and optimizer.state[p].get("state1") is state["state1"]
            and state["step"] == self.state[0]["step"]
            for p, gradient, address, state in zip(
                self.members, self.gradients, self.addresses, self.state, strict=True
            )
        )

    def update(self, optimizer, group, gindex, pindex, update_step):
        self.flat_state["step"] = self.state[0]["step"]
        optimizer.state[self.whole] = self.flat_state
        try:
            update_step(optimizer, group, self.whole, gindex, pindex)
        finally:
            del optimizer.state[self.whole]
        for state in self.state:
            state["step"] += 1


@dataclass
class _Plan:
    """What a step of a group does. at: the parameter that it was at last."""

    stretches: dict
    covered: set
    at: int = -1

    def holds(self, optimizer):
        return all(stretch.holds(optimizer) for stretch in self.stretches.values())


def _plan(optimizer, group, gindex, init_state):
    """Stretches of a group by their first index; lays their state flat if need be."""
    stretches, covered = {}, set()
    for run in _runs(optimizer, group):
        members = [group["params"][index] for index in run]
        states = [optimizer.state[p] for p in members]
        if not all(states) or len({state["step"] for state in states}) > 1:
            continue
        names = [name for name in _STATE if name in states[0]]
        if not all(_neighbours([s[name] for s in states]) for name in names):
            _lay_state_flat(optimizer, group, members, gindex, run[0], init_state)
            states = [optimizer.state[p] for p in members]
        flat = {name: states[0][name] for name in states[0]}
        flat |= {name: _over([s[name] for s in states]) for name in names}
        whole = torch.nn.Parameter(_over([p.data for p in members]))
        whole.grad = _over([p.grad for p in members])
        stretches[run[0]] = _Stretch(
            members,
            [p.grad for p in members],
            states,
            [p.data_ptr() for p in members],
            whole,
            flat,
        )
        covered.update(run)
    return _Plan(stretches, covered)


def _runs(optimizer, group):
    """Lists of two or more indices in a row that could be updated as one tensor."""
    plain = (
        type(optimizer).init_state is bnb.Optimizer2State.init_state
        and type(optimizer).update_step is bnb.Optimizer2State.update_step
        and not optimizer.args.max_unorm  # the norm of one tensor
        and not optimizer.mng.pid2config
        and not optimizer.mng.index2config
    )
    runs = [[]]
    for index, parameter in enumerate(group["params"] if plain else ()):
        before = group["params"][runs[-1][-1]] if runs[-1] else None
        if not _fits(parameter, optimizer.args):
            runs.append([])
        elif before is None or _neighbours_in_all(before, parameter):
            runs[-1].append(index)
        else:
            runs.append([index])
    return [run for run in runs if len(run) > 1]


def _fits(parameter, args):
    gradient = parameter.grad
    if gradient is None or gradient.dtype != parameter.dtype:
        return False
    if not parameter.is_contiguous() or not gradient.is_contiguous():
        return False
    if args.optim_bits != 8:
        return True
    return parameter.numel() % BLOCK == 0 and parameter.numel() >= args.min_8bit_size


def _neighbours_in_all(first, second):
    return _neighbours([first.data, second.data]) and _neighbours(
        [first.grad, second.grad]
    )


def _neighbours(tensors):
    """Do contiguous tensors follow each other in one piece of memory?"""
    first = tensors[0]
    storage, at = first.untyped_storage().data_ptr(), first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != at or tensor.dtype != first.dtype:
            return False
        if tensor.untyped_storage().data_ptr() != storage:
            return False
        at += tensor.numel() * tensor.element_size()
    return True


def _over(tensors):
    """One tensor over the memory of neighbours."""
    size = sum(tensor.numel() for tensor in tensors)
    return _as_paged(tensors[0].as_strided((size,), (1,)), tensors[0])


def _as_paged(view, original):
    """bitsandbytes marks tensors of paged memory; a view of one is one."""
    if getattr(original, "is_paged", False):
        view.is_paged, view.page_deviceid = True, original.page_deviceid
    return view


def _lay_state_flat(optimizer, group, members, gindex, pindex, init_state):
    """Make the state of neighbours views of one state; keep the values it has."""
    whole = torch.nn.Parameter(_over([p.data for p in members]))
    init_state(optimizer, group, whole, gindex, pindex)
    flat, start = optimizer.state.pop(whole), 0
    for parameter in members:
        size, old = parameter.numel(), optimizer.state[parameter]
        state = dict(flat)
        for name in _STATE.keys() & flat.keys():
            per = _STATE[name]
            view = flat[name][start // per : (start + size) // per]
            if per == 1:
                view = view.view(parameter.shape)
            state[name] = _as_paged(view, flat[name])
            if old:
                state[name].copy_(old[name])
        state["step"] = old.get("step", 0)
        optimizer.state[parameter] = state
        start += size
