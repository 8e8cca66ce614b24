"""One byte-level BPE of 320 tokens for every tiny model: trained here, on a text held here.

Ids 0 to 2 are <|endoftext|> (pad), <|im_start|> (bos) and <|im_end|> (eos). Digits stand alone, as in
SmolLM2, so that the same tokenizer can be written to a GGUF as pre-tokenizer `smollm`.
"""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 320
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2

TEXT = """The weaver sets the long threads on the loom in the morning. They stay where they are.
Another thread crosses them, over one and under the next, and the pattern is in the crossing.
She had 3 colours on Monday and 12 on Friday; by 1987 there were more than the shop could hold.
"What is the weather like today?" he asked. "It is raining," she said, "and the wind is cold."
def weave(threads, colour):
    for thread in threads:
        print(thread, colour)
    return len(threads)
The user asked the assistant a question, and the assistant answered the user with another one.
You are a helpful assistant. Please write a short story about the river and the bridge.
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train():
    """The tokenizer as `tokenizers` knows it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def build():
    """The tokenizer as transformers saves it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=train(),
        pad_token=SPECIAL_TOKENS[PAD_ID],
        bos_token=SPECIAL_TOKENS[BOS_ID],
        eos_token=SPECIAL_TOKENS[EOS_ID],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def prompts():
    """Three prompts of 5, 19 and 40 tokens."""
    tokenizer = build()
    chat = [{"role": "user", "content": "What is the weather like on Friday 12, when the wind is cold and the river is high?"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    chat_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    plain_ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    prompts = [plain_ids[100:105], plain_ids[:19], chat_ids[-40:]]
    assert [len(ids) for ids in prompts] == [5, 19, 40]
    return prompts
