"""Which part of a model an operation belongs to, in the forward and in the backward.

Everything here is for a model on the meta device; used by `model.plan`.
Shape legend: T query tokens, X keys, K head width, V width of a value.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


class Label(NamedTuple):
    """Whose operation it is: a part, and within it a decoder layer or a gated block."""

    part: str
    index: int | None = None


class PlannedAttention(torch.autograd.Function):
    """Attention as a fused kernel counts: nothing of the size of T x T is kept.

    Forward two products, backward five, since the scores are computed again.

    Source: FlashAttention (arXiv:2205.14135) algorithms 1 and 4.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the shape of the output for ``[..., T, K]``, ``[..., X, K]``, ``[..., X, V]``."""
        groups = query.shape[-3] // key.shape[-3]
        output = query @ _grouped(key, groups).mT @ _grouped(value, groups)
        log_sum = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sum)
        return output

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients of the right shapes."""
        query, key, value, _, _ = ctx.saved_tensors
        groups = query.shape[-3] // key.shape[-3]
        keys = _grouped(key, groups)
        scores = query @ keys.mT
        grad_scores = grad @ _grouped(value, groups).mT
        grad_query, grad_keys = grad_scores @ keys, grad_scores.mT @ query
        grad_values = scores.mT @ grad
        heads = (-3, (key.shape[-3], groups))
        return (
            grad_query,
            grad_keys.unflatten(*heads).sum(-3),
            grad_values.unflatten(*heads).sum(-3),
        )


class PlanAttention(TorchFunctionMode):
    """Puts `PlannedAttention` in place of every attention inside of it.

    A family that asks whether its mask hides anything hears that it does not: the row has no padding.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Masks and scales cost no product."""
        if func is F.scaled_dot_product_attention:
            query, key, value = [*args, *(kwargs or {}).values()][:3]
            return PlannedAttention.apply(query, key, value)
        if func in (Tensor.item, Tensor.__bool__) and args[0].is_meta:
            return True
        return func(*args, **(kwargs or {}))


def _grouped(tensor: Tensor, groups: int) -> Tensor:
    return tensor if groups == 1 else tensor.repeat_interleave(groups, dim=-3)


class Meter:
    """Says which part the operations between two events belong to.

    In the forward the innermost labelled module tells; in the backward whatever tensor was unpacked
    last, since every product needs one that was kept, and `keep` noted whose it is.

    Args:
        counter: of the operations.
        ignored: storages that are no activations: parameters and buffers.
        rest: label of what no labelled module does, such as the loss behind the head.
    """

    def __init__(self, counter: FlopCounterMode, ignored: set[int], rest: Label) -> None:
        self.counter = counter
        self.forward_flops: dict[Label, int] = defaultdict(int)
        self.backward_flops: dict[Label, int] = defaultdict(int)
        self.activation_bytes: dict[Label, int] = defaultdict(int)
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._ignored = ignored
        self._stack = [rest]
        self._label = self._stack[0]
        self._backward = False
        self._counted = 0

    def switch(self, label: Label | None = None) -> None:
        """What was counted since the last event belongs to its label; from here on to this one."""
        total = self.counter.get_total_flops()
        flops = self.backward_flops if self._backward else self.forward_flops
        flops[self._label] += total - self._counted
        self._counted = total
        self._label = label or self._stack[-1]
        self._backward = torch._C._current_graph_task_id() != -1

    def enter(self, label: Label, *_: object) -> None:
        """Forward pre-hook, with the label bound."""
        self._stack.append(label)
        self.switch()

    def leave(self, *_: object) -> None:
        """Forward hook."""
        self._stack.pop()
        self.switch()

    def keep(self, tensor: Tensor) -> tuple[Label, Tensor]:
        """Autograd keeps a tensor: count its storage once, for the part that kept it first."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._ignored and storage._cdata not in self._storages:
            # Held, so that no other storage gets its address.
            self._storages[storage._cdata] = storage
            self.activation_bytes[self._stack[-1]] += storage.nbytes()
        return self._stack[-1], tensor

    def take(self, kept: tuple[Label, Tensor]) -> Tensor:
        """Autograd takes the tensor back."""
        label, tensor = kept
        self.switch(label)
        return tensor


@contextmanager
def labelled(labels: dict[nn.Module, Label], meter: Meter) -> Iterator[None]:
    """Tell the meter when the modules begin and end."""
    handles = []
    for module, label in labels.items():
        handles.append(module.register_forward_pre_hook(partial(_enter, meter, label)))
        handles.append(module.register_forward_hook(partial(_leave, meter)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(meter: Meter, label: Label, *_: object) -> None:
    meter.enter(label)


def _leave(meter: Meter, *_: object) -> None:
    meter.leave()
