"""How far the gates of the blocks are open."""

import torch

from model.flamingo import Flamingo


@torch.no_grad()
def gate_values(model: Flamingo) -> dict[str, float]:
    """tanh of the gates of every block; of a gate with a value per channel, the mean of the absolutes.

    0 is closed: the block changes nothing; the sign of a gate means nothing by itself.
    """
    values = {}
    for index, block in enumerate(model.gated_blocks):
        for name, gate in (("attention", block.attn_gate), ("feed_forward", block.ff_gate)):
            if gate.numel() == 0:
                continue  # ZeRO-3 has divided it; the small ones it leaves whole
            opened = torch.tanh(gate.float())
            value = opened if opened.numel() == 1 else opened.abs().mean()
            values[f"gates/block_{index}/{name}"] = float(value)
    return values
