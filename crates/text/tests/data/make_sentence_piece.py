"""Writes sentence_piece.json: a small SentencePiece vocabulary and what its own library makes of texts.

Run with `sentencepiece` and `protobuf` installed: python make_sentence_piece.py
"""
import io
import json
import pathlib
import random

import sentencepiece

WORDS = ("the of and adapter server model token batch engine stream page cache request prompt lease "
         "serve many little models weaving thread loom weft warp Hello World naïve café größer").split()
TEXTS = ["Hello world", "the adapter serves", "  two  spaces ", "", " ", "tokens, tokens; tokens!", "größer café",
         "日本語 text", "emoji 🙂 end", "line\nbreak\ttab", "CamelCase123 4567", "theof and", "<0x41> <s> literal",
         "▁ underscore ▁", "a" * 40, "weaving threads on a loom of many little models", "\x00\x7f", "é\u0301"]


def main():
    rng = random.Random(7)
    corpus = [" ".join(rng.choices(WORDS, k=12)) + rng.choice([".", "!", "?", ""]) for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, vocab_size=420, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=1.0,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(processor.get_piece_size())
    kind = lambda i: 2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1
    document = {
        "tokens": [processor.id_to_piece(i) for i in ids], "scores": [processor.get_score(i) for i in ids],
        "types": [kind(i) for i in ids],
        # Control tokens are matched in text by the tokenizer under test and not by SentencePiece.
        "cases": [{"text": text, "ids": processor.encode(text), "decoded": processor.decode(processor.encode(text))}
                  for text in TEXTS if "<s>" not in text],
    }
    pathlib.Path(__file__).with_name("sentence_piece.json").write_text(json.dumps(document, ensure_ascii=False) + "\n")
    print(len(document["tokens"]), "tokens", document["cases"][2])


main()
