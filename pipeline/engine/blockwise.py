"""AdamW and Lion with moments of 8 bits, in blocks of the logical parameter.

bitsandbytes lays its blocks of 256 over the tensor that it is given, which under ZeRO is a flat tensor of
many parameters: other ranks, other blocks, and no way to cut or join the states without quantising again.
Here the blocks belong to the logical parameter (`pipeline.engine.fragments`). A block that a rank boundary
cuts keeps its moments in 32 bits, and so does for good a block that once did. So nothing is ever quantised
but by a step, and the moments of any layout become those of any other, bit for bit.

Source: block-wise 8-bit states as in arXiv:2110.02861; the update itself is bitsandbytes'.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from pipeline.engine import blocks
from pipeline.engine.blocks import Layout, lay_out
from pipeline.engine.fragments import BLOCK, Fragment

# Moments by rule, in the order of bitsandbytes' states, and whether they have a sign.
RULES = {"adam": (True, False), "lion": (True,)}


def code_maps(rule: str) -> list[Tensor]:
    """The 256 values of a code, fp32 on the CPU, for each moment of a rule."""
    from bitsandbytes.functional import create_dynamic_map  # slow: only where needed

    return [create_dynamic_map(signed=signed) for signed in RULES[rule]]


class BlockwiseOptimizer(torch.optim.Optimizer):
    """AdamW or Lion over flat tensors; `place` says what these hold. One that is not placed is one parameter.

    Args:
        groups: parameter groups; `optim_bits` (8 or 32) for each, 8 by default.
        rule: "adam" (decoupled decay) or "lion".
        lr: learning rate.
        betas: decay of the moments.
        eps: of Adam.
        min_8bit_numel: a logical parameter with fewer elements keeps 32 bits.

    State of each flat tensor: ``step``; ``codes1`` uint8 and ``absmax1`` fp32 per block, ``exact1``
    fp32; the same with 2 for Adam.
    """

    def __init__(
        self,
        groups: list[dict],
        rule: str,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        min_8bit_numel: int = 4096,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "optim_bits": 8}
        super().__init__(groups, defaults)
        self.rule = rule
        self.min_8bit_numel = min_8bit_numel
        self.layouts: dict[Tensor, Layout] = {}
        self._maps: dict[torch.device, list[Tensor]] = {}

    def place(
        self,
        keys: list[Tensor],
        fragments: list[Fragment],
        bits: list[int],
        kept: dict[str, Collection[int]] | None = None,
    ) -> None:
        """Say what the flat tensors hold. Their moments, if there were any, begin anew.

        Args:
            keys: the flat tensors.
            fragments: of them, see `pipeline.engine.fragments.EngineView`.
            bits: of each flat tensor.
            kept: see `lay_out`.
        """
        held: list[list[Fragment]] = [[] for _ in keys]
        for fragment in fragments:
            held[fragment.flat].append(fragment)
        for key, parts, width in zip(keys, held, bits, strict=True):
            parts.sort(key=lambda f: f.offset)
            self.layouts[key] = lay_out(parts, width, self.min_8bit_numel, kept or {})
            self.state.pop(key, None)

    def begin(self, key: Tensor) -> dict:
        """The state of a flat tensor; zeros at first."""
        state = self.state[key]
        if state:
            return state
        layout, device = self.layouts[key], key.device
        state["step"] = 0
        for number in range(1, len(RULES[self.rule]) + 1):
            # Whatever the code, a scale of 0 makes a moment of 0.
            codes = torch.zeros(layout.num_codes, dtype=torch.uint8, device=device)
            state[f"codes{number}"] = codes
            state[f"absmax{number}"] = torch.zeros(layout.num_blocks, device=device)
            state[f"exact{number}"] = torch.zeros(layout.num_exact, device=device)
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, which gives all state the dtype of its parameter; codes get theirs back."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in [n for n in state if n.startswith("codes")]:
                state[name] = state[name].to(torch.uint8)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step of every flat tensor that has a gradient."""
        if closure is not None:
            raise ValueError("BlockwiseOptimizer computes no loss: call step() without a closure")
        for group in self.param_groups:
            for key in group["params"]:
                if key.grad is not None:
                    self._update(group, key)

    def _update(self, group: dict, key: Tensor) -> None:
        import bitsandbytes.functional as bnb

        if key not in self.layouts:  # without a word on it, one parameter
            whole = Fragment("", key.numel(), 0, key.numel(), 0, 0)
            self.place([key], [whole], [group["optim_bits"]])
        layout, state = self.layouts[key], self.begin(key)
        state["step"] += 1
        flat, gradient = key.view(-1), key.grad.view(-1)
        two = len(RULES[self.rule]) == 2
        (beta1, beta2), step = group["betas"], state["step"]
        if key.device not in self._maps:
            self._maps[key.device] = [m.to(key.device) for m in code_maps(self.rule)]
        maps = self._maps[key.device]
        for offset, codes, block, numel in layout.quantised_runs():
            scales = slice(block, block - (-numel // BLOCK))
            code = slice(codes, codes + numel)
            bnb.optimizer_update_8bit_blockwise(
                self.rule,
                gradient[offset : offset + numel],
                flat[offset : offset + numel],
                state["codes1"][code],
                state["codes2"][code] if two else None,
                beta1,
                beta2,
                0.0,
                0.0,
                group["eps"],
                step,
                group["lr"],
                maps[0],
                maps[1] if two else None,
                state["absmax1"][scales],
                state["absmax2"][scales] if two else None,
                weight_decay=group["weight_decay"],
            )
        runs = layout.exact_runs()
        if not runs:
            return
        # One call for all of them: there are many short ones where rank boundaries cut blocks.
        parts = [flat[offset : offset + numel] for offset, numel in runs]
        weights = parts[0] if len(parts) == 1 else torch.cat(parts)
        gradients = [gradient[offset : offset + numel] for offset, numel in runs]
        gradients = gradients[0] if len(parts) == 1 else torch.cat(gradients)
        for done in range(0, len(weights), blocks.LARGEST_RUN):
            part = slice(done, done + blocks.LARGEST_RUN)
            bnb.optimizer_update_32bit(
                self.rule,
                gradients[part],
                weights[part],
                state["exact1"][part],
                beta1,
                group["eps"],
                step,
                group["lr"],
                state2=state["exact2"][part] if two else None,
                beta2=beta2,
                weight_decay=group["weight_decay"],
            )
        if len(parts) > 1:
            for part, value in zip(parts, weights.split([n for _, n in runs]), strict=True):
                part.copy_(value)
