"""Golden tokens and logits of the demo base, from its dequantized weights in transformers.

    python scripts/golden/make_demo_base.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out tests/golden

Writes smollm2_base.json (prompt ids, 32 greedy tokens and their margins, a text's mean negative log
likelihood) and smollm2_base.safetensors (`last_logits`, f16 [10, vocab]: logits of each prompt's last
position).
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = [
    "What is the capital of Italy?",
    "Name three colours of the rainbow.",
    "How do I boil an egg?",
    "Why is the sky blue?",
    "Write one sentence about the sea.",
    "What do bees make?",
    "How many days are in a week?",
    "Tell me a fact about elephants.",
    "What is 7 times 8?",
    "Give me a tip for sleeping well.",
]

TEXT = """A loom holds many long threads side by side. They are stretched from one beam to another, and
they do not move while the cloth is made. The weaver passes a second thread across them, over one and
under the next, and presses it down with a comb. Row after row the pattern grows. The long threads give
the cloth its strength, and the crossing thread gives it colour. If the weaver wants another picture, the
long threads can stay where they are: only the thread that crosses them has to change. In the old workshops
a master would set up the loom in the morning, and by the evening three or four apprentices had each made a
strip of their own on it. One liked birds, another liked letters, and the youngest made stripes in every
colour that was left in the basket. At the end of the week the strips were washed, dried in the wind and
sold at the market near the bridge. People came from the villages along the river to buy them, and some of
the cloth travelled on ships to towns that the weavers would never see."""


def greedy(model, ids, num_tokens):
    """Tokens and the margin between the two best logits of each, by full forward passes."""
    ids, tokens, margins, last_logits = list(ids), [], [], None
    for _ in range(num_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        last_logits = logits if last_logits is None else last_logits
        best = logits.topk(2)
        tokens.append(int(best.indices[0]))
        margins.append(round(float(best.values[0] - best.values[1]), 4))
        ids.append(tokens[-1])
    return tokens, margins, last_logits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/golden"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = {"pretrained_model_name_or_path": args.gguf.parent, "gguf_file": args.gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    prompts, last_logits = [], []
    for question in QUESTIONS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens, margins, logits = greedy(model, ids, 32)
        last_logits.append(logits)
        prompts.append({"user": question, "prompt_ids": ids, "greedy": tokens, "margins": margins})
        print(question, "->", tokenizer.decode(tokens))

    ids = tokenizer(" ".join(TEXT.split()), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    nll = -logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].mean()
    print(len(ids), "tokens of text, mean negative log likelihood", float(nll))

    perplexity = {"ids": ids, "mean_nll": float(nll)}
    golden = json.dumps({"prompts": prompts, "perplexity": perplexity})
    (args.out / "smollm2_base.json").write_text(golden + "\n")
    save_file({"last_logits": torch.stack(last_logits).half()}, args.out / "smollm2_base.safetensors")


if __name__ == "__main__":
    main()
