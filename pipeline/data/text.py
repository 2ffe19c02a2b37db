"""Samples to tokens and labels: pairs and interleaved documents."""

from dataclasses import dataclass

from data_prep.tar_members import Prompt
from model.tokens import TokenIds

IGNORE = -100


@dataclass(frozen=True)
class Encoded:
    """The text side of one sample.

    Attributes:
        ids: tokens.
        labels: of the same length, not shifted: the token itself where it is to be predicted, else
            `IGNORE`.
        num_images: image tokens among them; they belong to the first images of the sample.
    """

    ids: list[int]
    labels: list[int]
    num_images: int

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss, after the shift by one."""
        return sum(label != IGNORE for label in self.labels[1:])


def _is_prompted(parts: list[bytes | str]) -> bool:
    """An image, a prompt and a text."""
    return len(parts) == 3 and isinstance(parts[0], bytes) and isinstance(parts[1], Prompt)


@dataclass(frozen=True)
class TextFormat:
    """How a sample becomes tokens.

        pair         <s> <image> caption <|endofchunk|> </s>
        prompted     <s> <image> prompt answer <|endofchunk|> </s>
        interleaved  <s> text <image> text <|endofchunk|> <image> text <|endofchunk|> </s>

    Targets are the texts behind an image, the ends of their chunks, and the end of a pair. No targets
    are marks of images, prompts (`data_prep.tar_members.Prompt`), what stands before the first image,
    and the end of an interleaved document, which was cut out of a longer page. Where the text stands
    alone, `</s>` ends it and all of it is a target.

    Attributes:
        tokenizer: a transformers tokenizer.
        token_ids: of the new tokens, or None where the text stands alone.
        max_tokens: longest text, marks included. A caption is cut in front of its end marks; an
            interleaved document is cut where it is.
        max_images: images of a document, at most; it is cut before the next.

    Source: open_flamingo ``preprocess_laion_text`` and ``preprocess_interleaved``; of an
        interleaved document that is no pair we keep images in the order in which they stand.
    """

    tokenizer: object
    token_ids: TokenIds | None
    max_tokens: int
    max_images: int = 8

    @property
    def begin_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if begin is None else begin

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end a caption."""
        chunk = [] if self.token_ids is None else [*self.token_ids.text[:1]]
        return [*chunk, self.tokenizer.eos_token_id]

    @property
    def prompt(self) -> list[int]:
        """What stands before every caption; carries no loss."""
        marks = [] if self.token_ids is None else [self.token_ids.media["image"]]
        return [self.begin_id, *marks]

    def encode(self, documents: list[list[bytes | str]]) -> list[Encoded]:
        """Tokens of samples, given as their images and texts in reading order."""
        texts = [part for parts in documents for part in parts if isinstance(part, str)]
        prompted = [_is_prompted(parts) for parts in documents]
        bodies = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
        # A caption from the web may spell the marks; it must neither ask for an image nor end itself.
        marks = set() if self.token_ids is None else set(self.token_ids.ordered)
        marks |= set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}

        def body(part: bytes | str) -> list[int] | None:
            if not isinstance(part, str):
                return None
            return [token for token in next(bodies) if token not in marks]

        laid_out = []
        for parts, has_prompt in zip(documents, prompted, strict=True):
            tokens = [body(part) for part in parts]
            if has_prompt and self.token_ids is not None:
                _, prompt, text = tokens
                laid_out.append(self._captioned([*self.prompt, *prompt], text))
            else:
                laid_out.append(self._lay_out(tokens))
        return laid_out

    def _lay_out(self, parts: list[list[int] | None]) -> Encoded:
        """One document; None stands for an image."""
        if self.token_ids is None:
            text = [token for part in parts if part is not None for token in part]
            return self._captioned([self.begin_id], text)
        if len(parts) == 2 and parts[0] is None and parts[1] is not None:
            return self._captioned(self.prompt, parts[1])
        image, chunk_end = self.token_ids.media["image"], self.end_ids[:-1]
        ids, labels, num_images, open_chunk = [self.begin_id], [IGNORE], 0, False
        for part in parts:
            if part is None and num_images == self.max_images:
                break
            if part is None:
                if open_chunk:
                    ids, labels = [*ids, *chunk_end], [*labels, *chunk_end]
                ids, labels, open_chunk = [*ids, image], [*labels, IGNORE], False
                num_images += 1
            else:
                ids = [*ids, *part]
                labels = [*labels, *(part if num_images else [IGNORE] * len(part))]
                open_chunk = num_images > 0
        if open_chunk:
            ids, labels = [*ids, *chunk_end], [*labels, *chunk_end]
        ids, labels = [*ids, self.tokenizer.eos_token_id], [*labels, IGNORE]
        ids, labels = ids[: self.max_tokens], labels[: self.max_tokens]
        return Encoded(ids, labels, ids.count(image))

    def _captioned(self, prompt: list[int], text: list[int]) -> Encoded:
        room = self.max_tokens - len(prompt) - len(self.end_ids)
        body = [*text[:room], *self.end_ids]
        num_images = 0 if self.token_ids is None else 1
        if room < 0:
            # Nothing of the answer fits: there is nothing to learn, and the sample is passed over.
            cut = prompt[: self.max_tokens]
            return Encoded(cut, [IGNORE] * len(cut), num_images)
        return Encoded([*prompt, *body], [IGNORE] * len(prompt) + body, num_images)

    def decode(self, ids: list[int]) -> str:
        """Text up to the first end mark."""
        ends = [ids.index(end) for end in self.end_ids if end in ids]
        return self.tokenizer.decode(
            ids[: min(ends, default=len(ids))], skip_special_tokens=True
        ).strip()
