"""A tokenizer of whole words whose end mark is its highest id, as CLIP's."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = "<pad> <unk> a b c d e f red green blue cat dog car on the of picture small big ' large"
VOCABULARY = {word: i for i, word in enumerate([*WORDS.split(), "<start>", "<end>"])}


def tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    fast = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(name, VOCABULARY[name]) for name in ("<start>", "<end>")]
    fast.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=marks
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=max_length,
        padding_side="right",
    )
