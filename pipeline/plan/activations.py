"""Bytes that a forward pass keeps for the backward, and those of the largest thing computed in between."""

from dataclasses import dataclass

from model.loss import LOGITS_PER_CHUNK
from model.plan import ModelPlan

# What a layer has for a moment, in what it keeps: half was measured on a CPU.
TEMPORARY = 0.5
# A frozen tower keeps nothing; while one of its layers runs there are about so many tensors of the size
# of its hidden states: queries, keys, values, output, and a feed-forward of 4 widths with its activation.
TOWER_TENSORS = 12


@dataclass(frozen=True)
class Activations:
    """Of one GPU; the sizes of a row are those of the plan.

    Attributes:
        plan: of the model, for rows as they are trained.
        first_layer: decoder layer that the first gated block stands before.
        passes: through the language model: a second one for the losses of the text alone.
        checkpointing: whether layers and blocks are computed again in the backward.
        weight_bytes: of a number in the precision of the run.
    """

    plan: ModelPlan
    first_layer: int
    passes: int
    checkpointing: bool
    weight_bytes: int

    @property
    def kept(self) -> float:
        """Bytes for each row."""
        total = self.plan.total.activation_bytes
        if not self.checkpointing:
            return total
        layers, blocks = self.plan.layer_bytes[self.first_layer :], self.plan.block_bytes
        width = int(self.plan.language["width"])
        hidden = self.plan.num_tokens * width * self.weight_bytes
        inputs = self.passes * (len(layers) + len(blocks)) * hidden
        return total - sum(layers) - sum(blocks) + inputs

    def working(self, num_rows: float) -> float:
        """The largest of what is there for a moment: a chunk of logits, a layer's gradients, the tower."""
        plan = self.plan
        tokens = num_rows * plan.num_tokens
        logits = min(LOGITS_PER_CHUNK, tokens * int(plan.language["vocabulary"]))
        # Logits, then their logarithms in fp32 from a copy in fp32 (`model.loss`).
        copies = 8 if self.weight_bytes == 4 else self.weight_bytes + 8
        # With checkpointing, what a layer keeps is there for a moment too.
        layer = max([*plan.layer_bytes, *plan.block_bytes], default=0) / self.passes
        layer *= num_rows * (TEMPORARY + self.checkpointing)
        tower = sum(kind.num_patches * kind.width for kind in plan.media)
        tower *= num_rows * plan.num_images * self.weight_bytes * TOWER_TENSORS
        return max(copies * logits, layer, tower)
