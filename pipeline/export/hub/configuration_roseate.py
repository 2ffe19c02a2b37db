"""What an exported Roseate model is made of."""

from transformers import PretrainedConfig


class RoseateConfig(PretrainedConfig):
    """Configuration of `RoseateForConditionalGeneration`.

    Args:
        vision: ``class`` in transformers (or ``efficientnet_lite0``) and ``config`` of the image tower,
            ``arguments`` of its constructor, ``form`` (``plain`` or ``naflex``), and ``image_size``,
            ``patch_size``, ``mean``, ``std`` of what it takes.
        language: transformers config of the language model, ``layers_path`` of its decoder layers,
            ``embed_scale`` of its embedding, and whether its head ``is_tied`` to that.
        fused_layers: decoder layers with a gated block before them.
        resampler, cross_attention, experts: sizes of the trained parts.
        media_token_id, text_token_ids: of the new tokens.
        contrastive: sizes of the contrastive head, None without.
        towers: part to path and sha256 of towers that are not in the weights; empty when they are.
    """

    model_type = "roseate"

    def __init__(
        self,
        vision=None,
        language=None,
        fused_layers=(),
        resampler=None,
        cross_attention=None,
        experts=None,
        media_token_id=None,
        text_token_ids=(),
        contrastive=None,
        towers=None,
        **kwargs,
    ):
        self.vision = vision or {}
        self.language = language or {}
        self.fused_layers = list(fused_layers)
        self.resampler = resampler or {}
        self.cross_attention = cross_attention or {}
        self.experts = experts or {}
        self.media_token_id = media_token_id
        self.text_token_ids = list(text_token_ids)
        self.contrastive = contrastive
        self.towers = towers or {}
        # That of the language model, for whoever looks for vocabulary and widths.
        self.hidden_size = self.language.get("hidden_size")
        new = [*self.text_token_ids, *([] if media_token_id is None else [media_token_id])]
        self.vocab_size = max([self.language.get("vocab_size") or 0, *(i + 1 for i in new)])
        super().__init__(**kwargs)
