"""Cross entropy of the next tokens, from hidden states in front of the language model's head.

Shape legend: B rows, T text tokens, H language width, X target tokens.
"""

from torch import Tensor, nn

from model.fusion import FusionContext, Head
from model.loss import chunked_cross_entropy


class NextTokenLoss:
    """Only hidden states with a target meet the head.

    Args:
        head: of the language model, new tokens included.
        language: whose configuration knows the size of the vocabulary.
    """

    def __init__(self, head: Head, language: nn.Module) -> None:
        self._head, self._language = head, language

    def __call__(
        self, hidden_BTH: Tensor, targets_BT: Tensor, context: FusionContext
    ) -> tuple[Tensor, Tensor]:
        """The sum, and ``[B, T - 1]`` of each without a gradient.

        Args:
            hidden_BTH: in front of the head.
            targets_BT: long, not shifted; -100 for none.
            context: of the forward; the output rows of its new tokens get a gradient.
        """
        hidden_XH, targets_X = hidden_BTH[:, :-1].flatten(0, 1), targets_BT[:, 1:].flatten()
        if not targets_X.is_meta:
            wanted = (targets_X != -100).nonzero().squeeze(1)
            hidden_XH, targets_X = hidden_XH[wanted], targets_X[wanted]
        else:
            wanted, targets_X = None, targets_X.clamp(min=0)

        def head(hidden: Tensor, rows: Tensor) -> Tensor:
            context.output_rows = rows
            return self._head(hidden.unsqueeze(0)).squeeze(0)

        vocabulary = max(self._language.config.get_text_config().vocab_size, 1)
        rows = context.output_rows
        loss, losses_X = chunked_cross_entropy(
            hidden_XH, rows, targets_X, head, vocabulary=vocabulary
        )
        context.output_rows = rows
        losses_BT = losses_X
        if wanted is not None:
            losses_BT = losses_X.new_zeros(targets_BT[:, 1:].numel()).index_copy(
                0, wanted, losses_X
            )
        return loss, losses_BT.view_as(targets_BT[:, 1:])
