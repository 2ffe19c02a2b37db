"""Bytes that an engine really holds, found by walking its tensors: each storage counts once."""

import gc
from collections.abc import Iterable

import torch
from torch import Tensor


def unique_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the storages of tensors; views share one, None has none."""
    storages = {}
    for tensor in tensors:
        if tensor is not None:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def living_tensors() -> list[Tensor]:
    """Every tensor that a Python object of this process refers to."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) in (Tensor, torch.nn.Parameter)]


def living_storages() -> dict[int, int]:
    """Address to bytes of the storages of `living_tensors`."""
    storages = (tensor.untyped_storage() for tensor in living_tensors())
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


class HeldBytes:
    """Reads the parts of `pipeline.plan.memory` off a DeepSpeed engine.

    Args:
        engine: DeepSpeed's.
        stage: of ZeRO.
    """

    def __init__(self, engine, stage: int) -> None:
        self.stage = stage
        self.zero = engine.optimizer
        self.trained = [p for p in engine.module.parameters() if p.requires_grad]
        self.frozen = [p for p in engine.module.parameters() if not p.requires_grad]
        self.most_gradients = 0
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self._note)

    def note_gradients(self) -> None:
        """Keep the most that gradients have taken so far, without the bucket that is sent."""
        if self.stage == 3:
            held = [self.zero.grad_partitions_flat_buffer]
        elif self.stage < 2:
            held = [p.grad for p in self.trained]
        else:
            # A gradient in the bucket is a view of it, and counts there.
            held = [self.zero.grads_in_partition]
            for kept in (self.zero.averaged_gradients, self.zero.all_grad_tensors):
                held += [tensor for tensors in kept.values() for tensor in tensors or ()]
        self.most_gradients = max(self.most_gradients, unique_bytes(held))

    def _note(self, _: Tensor) -> None:
        self.note_gradients()

    def parts(self) -> dict[str, int]:
        """After a step."""
        zero, moments = self.zero, {8: 0, 32: 0}
        inner = getattr(zero, "optimizer", zero)
        for state in inner.state.values():
            for name, tensor in state.items():
                if torch.is_tensor(tensor) and tensor.numel() > 1 and "map" not in name:
                    scale = name.startswith("absmax")
                    bits = 8 if scale or tensor.dtype == torch.uint8 else 32
                    moments[bits] += tensor.untyped_storage().nbytes()
        local = (lambda p: p.ds_tensor) if self.stage == 3 else (lambda p: p.data)
        parts = [local(p) for p in (*self.trained, *self.frozen)]
        # On one process a gathered parameter is its own part.
        gathered = [p.data for p in (*self.trained, *self.frozen) if p.data.numel() > 1]
        return {
            "weights": unique_bytes(local(p) for p in self.trained),
            "frozen": unique_bytes(local(p) for p in self.frozen),
            "whole": unique_bytes([*parts, *gathered]) - unique_bytes(parts),
            "gradients": self.most_gradients,
            "master": unique_bytes(self._masters()),
            "moments_8bit": moments[8],
            "moments_32bit": moments[32],
        }

    def _masters(self) -> list[Tensor]:
        if self.stage == 3:
            return self.zero.fp32_partitioned_groups_flat
        if self.stage:
            return self.zero.single_partition_of_fp32_groups
        groups = getattr(self.zero, "fp32_groups", [])  # none for fp32 without ZeRO
        return [master for group in groups for master in group]
