"""Golden tokens of the demo base's tokenizer, from the `tokenizers` library.

    python scripts/golden/make_tokenizer.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out tests/golden

Writes smollm2_tokenizer.json: texts, their ids without added special tokens, and the ids' text.

The file's pre-tokenizer is "smollm": single digits, then GPT-2's words. transformers reads GGUF files
without the step for digits, so the reference is built here from the file's tokens and merges; `note` in
the output says where the two differ.
"""

import argparse
import json
import pathlib

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

NORMAL, CONTROL = 1, 3

ENGLISH = [
    "",
    "a",
    "Hello",
    " Hello",
    "Hello, world!",
    "hello world",
    "The quick brown fox jumps over the lazy dog.",
    "A loom holds many long threads side by side.",
    "It's John's, isn't it? They're sure we've won; I'd say you'll see, I'm told.",
    "IT'S JOHN'S, ISN'T IT?",
    "don’t “quote” me – or do — on this…",
    "'s 't 're 've 'm 'll 'd",
    "''s''",
    "it''s",
    "What is the capital of Italy?",
    "e-mail: someone@example.com, see https://example.com/a/b?c=d&e=%20f#g",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "U.S.A. e.g. i.e. Ph.D. Mr. Smith",
    "?!?! ... !!! --- *** === ~~~ ###",
    "(a)[b]{c}<d>\"e\"'f'`g`",
    "one,two;three:four/five\\six|seven",
]

CODE = [
    "fn main() {\n    println!(\"Hello, {}!\", name);\n}\n",
    "def f(x: int) -> int:\n    \"\"\"Doc.\"\"\"\n    return x ** 2  # square\n",
    "for (int i = 0; i < n; ++i) { a[i] = b[i] * 2; }",
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name ORDER BY 2 DESC LIMIT 10;",
    "<html lang=\"en\"><body class='x'>&amp;&nbsp;</body></html>",
    "{\"a\": [1, 2.5, null, true], \"b\": {\"c\": \"d\\n\"}}",
    "#include <stdio.h>\n\tint\tx;\n",
    "if x:\n\tpass\nelse:\n\t\treturn\n",
    "$ git commit -m 'fix' && echo $? | tee /dev/null 2>&1",
    "let s = r#\"raw\"#; 'a: loop { break 'a; }",
    "\\frac{a}{b} \\sum_{i=0}^{n} x_i^2 $$E=mc^2$$",
    "```rust\nlet x = 1;\n```\n",
    "a==b!=c<=d>=e&&f||!g->h=>i::j",
    "0xDEADBEEF 0b1010 1e-9 1_000_000u64",
]

NUMBERS = [
    "0",
    "7",
    "10",
    "123",
    "12345",
    " 12345",
    "1234567890",
    "3.14",
    "-3.14159",
    "1,234,567.89",
    "1e10",
    "2024-02-29T23:59:59Z",
    "abc123def456",
    "x1 y22 z333",
    "1 2 3",
    "1  2   3",
    "99 bottles",
    "v1.2.3-rc.4",
    "192.168.0.1:8080",
    "50%",
    "$19.99",
    "1st 2nd 3rd",
    "½ ¼ ¾",
    "x² + y³",
    "٠١٢٣٤",
    "१२३",
    "１２３",
    "Ⅳ Ⅻ",
    "①②③",
    "一二三",
    "0.1+0.2=0.30000000000000004",
]

WHITESPACE = [
    " ",
    "  ",
    "   ",
    "    ",
    "     ",
    " " * 8,
    " " * 16,
    " " * 17,
    " " * 33,
    " " * 100,
    "\n",
    "\n\n",
    "\n\n\n",
    "\n" * 10,
    "\t",
    "\t\t",
    "\t\t\t\t",
    "\r",
    "\r\n",
    "\r\n\r\n",
    " \n",
    "\n ",
    " \n ",
    "  \n  \n  ",
    "\t \t",
    "\n\t\n",
    "a b",
    "a  b",
    "a   b",
    "a\tb",
    "a\nb",
    "a \n b",
    "a\n\nb",
    "a\r\nb",
    "  leading",
    "trailing  ",
    "trailing\n",
    "trailing \n",
    "    four\n        eight\n",
    "\u00a0",
    "a\u00a0b",
    "a\u2003b\u2009c",
    "a\u3000b",
    "a\u2028b\u2029c",
    "a\u0085b",
    "a\u000bb\u000cc",
    "\u200b",
    "a\u200bb",
    " 1",
    "  1",
    "1 ",
    "1\n2\n\n3",
]

EMOJI = [
    "🙂",
    "Hello 🙂 world",
    "🙂🙂🙂",
    "😀😃😄😁😆😅🤣😂",
    "❤️",
    "❤",
    "👍🏽",
    "👨‍👩‍👧‍👦",
    "🏳️‍🌈",
    "👩🏾‍🚀 🧑‍💻",
    "🇮🇹🇯🇵🇧🇷",
    "1️⃣2️⃣",
    "🫠🪿",
    "a🙂b",
    "™©®",
]

SCRIPTS = [
    "你好，世界！",
    "我喜欢学习中文。",
    "東京は日本の首都です。",
    "こんにちは カタカナ ﾊﾝｶｸ",
    "안녕하세요 세계",
    "𠮷野家",
    "السلام عليكم ورحمة الله",
    "مرحبا 123 بالعالم",
    "שלום עולם",
    "שָׁלוֹם",
    "नमस्ते दुनिया",
    "ภาษาไทยไม่มีช่องว่าง",
    "Привет, мир!",
    "Γειά σου Κόσμε",
    "Xin chào thế giới",
    "Zażółć gęślą jaźń",
    "Größe Straße ÄÖÜ ẞ",
    "naïve café résumé Ångström",
    "İstanbul ığdır",
    "Հայերեն ქართული አማርኛ",
    "mixed 中文 and English 混合 text",
]

COMBINING = [
    "e\u0301",
    "\u00e9",
    "cafe\u0301 café",
    "a\u0308o\u0308u\u0308",
    "n\u0303",
    "Z\u0351\u036b\u0343\u0363\u0308a\u030d\u0333l\u0311g\u0323o\u0489",
    "\u0301",
    " \u0301",
    "ﬁ ﬂ ﬀ",
    "Ａｂｃ",
    "\u1100\u1161\u11a8",
    "\u202eabc\u202c",
    "\ufeffBOM",
    "\u00ad soft\u00adhyphen",
]

ODD = [
    "\u0000",
    "a\u0000b",
    "\u0001\u0002\u001f",
    "\u007f",
    "\u0080\u009f",
    "\ufffd",
    "\uffff",
    "\U0010ffff",
    "\ue000",
    "ÿ",
    "Ġ",
    "Ġthe Ċ ĉ",
    "Ā",
    "<0x0A>",
    "▁the",
    "\\n \\t \\u0041",
    "∀x∈ℝ: ⌈x⌉ ≥ x ∧ ¬∃y",
    "→ ← ↑ ↓ ⇒ ✓ ✗",
    "░▒▓█ ─│┌┐",
    "𝓗𝓮𝓵𝓵𝓸 𝟙𝟚𝟛",
    "µ μ Ω Ω",
    "ǅ ʰ ª º",
]

SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\n12345?<|im_end|>\n",
    "a<|im_end|>b",
    "a <|im_end|> b",
    "  <|im_end|>  ",
    "\n<|im_end|>\n",
    "<|im_start|><|im_start|><|im_end|>",
    "<|im_start|",
    "<|im_start|>>",
    "<<|im_start|>",
    "<| im_start |>",
    "<|IM_START|>",
    "<|im_end|>1234",
    "1234<|im_end|>",
    "<repo_name>weft<file_sep>main.rs<|endoftext|>",
    "<reponame><filename><gh_stars>",
    "<issue_start><issue_comment><issue_closed>",
    "<jupyter_start><jupyter_text><jupyter_code><jupyter_output><jupyter_script><empty_output>",
    "<unk><s></s><pad>",
]

LONG = [
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "antidisestablishmentarianism floccinaucinihilipilification",
    "a" * 200,
    "ab" * 100,
    "A" * 65,
    "z" * 64 + " " + "z" * 63,
    "-" * 80,
    "=" * 33,
    "." * 50,
    "!?" * 20,
    "9" * 40,
    "é" * 30,
    "字" * 30,
    "\n " * 12,
    "qzxjkvbwpy" * 6,
    "aGVsbG8gd29ybGQgdGhpcyBpcyBiYXNlNjQ+Lw==",
    "d41d8cd98f00b204e9800998ecf8427e",
    "The weaver passes a second thread across them, over one and under the next, and presses it down with a "
    "comb. Row after row the pattern grows.\n\nIn 1804, Jacquard's loom read punched cards; by 1812 there "
    "were 11,000 in use.\n",
]

GROUPS = [ENGLISH, CODE, NUMBERS, WHITESPACE, EMOJI, SCRIPTS, COMBINING, ODD, SPECIAL, LONG]


def reference(gguf):
    """The tokenizer that the file describes."""
    fields = GGUFReader(gguf).fields
    read = lambda name: fields[f"tokenizer.ggml.{name}"].contents()
    assert (read("model"), read("pre")) == ("gpt2", "smollm")
    tokens, types = read("tokens"), read("token_type")
    assert set(types) <= {NORMAL, CONTROL}
    merges = [tuple(merge.split(" ")) for merge in read("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [text for text, kind in zip(tokens, types) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    assert tokenizer.get_vocab_size() == len(tokens)
    return tokenizer


def make(out, gguf):
    tokenizer = reference(gguf)
    converted = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    cases, differing, converted_differs, lossy = [], [], [], []
    for text in (text for group in GROUPS for text in group):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        if converted(text, add_special_tokens=False)["input_ids"] != ids:
            differing.append(text)
        if converted.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) != decoded:
            converted_differs.append(text)
        if decoded != text:
            lossy.append(text)
        cases.append({"text": text, "ids": ids, "decoded": decoded})
    assert len(cases) == len({case["text"] for case in cases}) >= 150
    assert not converted_differs, converted_differs
    note = (
        "Single digits, then GPT-2's words, then the file's merges; special tokens in a text are recognised, "
        f"none are added. transformers' conversion of the file has no step for digits, which shows in white "
        f"space before a numeral: {len(differing)} of {len(cases)} texts get other ids there, "
        f"{', '.join(map(json.dumps, differing))}. Texts that decoding changes: {lossy or 'none'}."
    )
    lines = ",\n".join(json.dumps(case) for case in cases)
    path = out / "smollm2_tokenizer.json"
    path.write_text(f'{{"note": {json.dumps(note)},\n"cases": [\n{lines}\n]}}\n')
    print(path.name, note)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/golden"))
    args = parser.parse_args()
    make(args.out, args.gguf)


if __name__ == "__main__":
    main()
