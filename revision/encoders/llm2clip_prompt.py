"""What LLM2CLIP's text LLM reads: a caption between a header and a closing token, as token ids.

Place in the pipeline: captions -> **token ids, mask of the document** -> bidirectional Llama.

    llama3_user   <|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\n{caption}<|eot_id|>
    none          <|begin_of_text|>{caption}

The document, over which the states are averaged, is the caption and the closing token.

Source: McGill-NLP/llm2vec@312adcf llm2vec/llm2vec.py (`prepare_for_tokenization`, `tokenize`),
with which LLM2CLIP trained its adapter. LLM2Vec takes the template only if the model's name in the
config is exactly Meta's; ReVision's public script sets that name before loading, loading sets it
back, and its features are those of `none`.

Departs from LLM2Vec:
- A caption that is too long loses its own end. LLM2Vec cuts the whole text, which loses the closing
  token and moves the mask, counted from the end, over the header.
- The pieces are tokenised one by one, so no tokenizer merges a line break at the start of a caption
  into the header; other captions get the same ids.
- No marker inside the text tells the document from the header: a caption may hold anything.

Letters: n captions, T tokens in the longest.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from revision.encoders.base import Tokens

Template = Literal["llama3_user", "none"]

# (before the caption, behind it, whether white space behind the caption is dropped)
TEMPLATES: dict[str, tuple[str, str, bool]] = {
    "llama3_user": ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>", True),
    "none": ("", "", False),
}
_PROBE = "a"


@dataclass(frozen=True)
class Prompt:
    """The token ids around a caption, and room for `max_length` tokens in all."""

    tokenizer: Any
    template: str
    max_length: int
    header: tuple[int, ...]
    closing: tuple[int, ...]

    @staticmethod
    def make(tokenizer: Any, *, template: str, max_length: int) -> "Prompt":
        """Raises ValueError for an unknown template and for a tokenizer that cannot write it."""
        if template not in TEMPLATES:
            raise ValueError(f"template is one of {', '.join(TEMPLATES)}, got {template!r}")
        before, behind, _ = TEMPLATES[template]
        _check_special_tokens(tokenizer, template)
        header = (*_opening(tokenizer), *_bare(tokenizer, before))
        closing = tuple(_bare(tokenizer, behind))
        needed = len(header) + len(closing)
        if needed >= max_length:
            raise ValueError(
                f"max_length={max_length} tokens leave no room for a caption: the template "
                f"{template!r} alone takes {needed}; give more"
            )
        return Prompt(tokenizer, template, max_length, header, closing)

    def tokenize(self, captions: list[str]) -> Tokens:
        """`input_ids`, `attention_mask` and `document_mask` (n, T), padded on the right."""
        room = self.max_length - len(self.header) - len(self.closing)
        whole = [_bare(self.tokenizer, self._trimmed(caption)) for caption in captions]
        texts = [[*self.header, *ids[:room], *self.closing] for ids in whole]
        lengths = torch.tensor([len(ids) for ids in texts])
        columns = torch.arange(int(lengths.max()))
        tokens = columns < lengths[:, None]
        inputs = {
            "input_ids": self._padded(texts),
            "attention_mask": tokens.long(),
            "document_mask": (tokens & (columns >= len(self.header))).long(),
        }
        return Tokens(inputs, num_truncated=sum(len(ids) > room for ids in whole))

    def _trimmed(self, caption: str) -> str:
        return caption.rstrip() if TEMPLATES[self.template][2] else caption

    def _padded(self, texts: list[list[int]]) -> Int[Tensor, "n T"]:
        longest = max(map(len, texts))
        pad = _padding(self.tokenizer)
        return torch.tensor([ids + [pad] * (longest - len(ids)) for ids in texts])


def _bare(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _opening(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front of any text: Llama 3's <|begin_of_text|>, or nothing."""
    framed, bare = tokenizer(_PROBE)["input_ids"], _bare(tokenizer, _PROBE)
    if framed[len(framed) - len(bare) :] != bare:
        raise ValueError(
            f"the tokenizer writes {framed} for {_PROBE!r} and {bare} without special tokens: it "
            "puts a token behind a text, which Llama 3's does not and which the mean would miss; "
            "give the tokenizer of the text LLM, with no closing token of its own"
        )
    return framed[: len(framed) - len(bare)]


def _check_special_tokens(tokenizer: Any, template: str) -> None:
    """The marks of the template must be single tokens, not spelt out."""
    before, behind, _ = TEMPLATES[template]
    marks = [f"<|{part}|>" for part in ("start_header_id", "end_header_id", "eot_id")]
    for mark in (mark for mark in marks if mark in before + behind):
        ids = _bare(tokenizer, mark)
        if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != mark:
            raise ValueError(
                f"the tokenizer writes {mark} as {len(ids)} tokens {ids}, not as 1: no text would "
                f"start with the header of template={template!r}, without an error. Give a Llama 3 "
                "tokenizer, or template=none if the text LLM was trained without a template"
            )


def _padding(tokenizer: Any) -> int:
    """As LLM2Vec pads; padding is masked, so any token would do."""
    pad = tokenizer.eos_token_id
    return 0 if pad is None else pad
