"""Adapters of several methods on quantized bases: made and saved by peft, with golden logits.

As in QLoRA's golden file, peft computes on the dequantized weights in single precision. The bases are
made again from `bases/float` to have them, and must come out as they are stored.
"""

import pathlib
import shutil
import tempfile

from peft import IA3Config, LoKrConfig, PeftModel, VeraConfig, get_peft_model

import oracle
import tiny_bases
import tiny_methods
import tiny_tokenizer

METHODS = {
    "lora": lambda: tiny_methods.lora(r=2),
    "dora": lambda: tiny_methods.lora(r=2, use_dora=True),
    "ia3": lambda: IA3Config(
        **tiny_methods.TASK,
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "lokr": lambda: LoKrConfig(**tiny_methods.TASK, r=2, alpha=4, target_modules=tiny_methods.LINEARS),
    "vera": lambda: VeraConfig(
        **tiny_methods.TASK, r=8, target_modules=tiny_methods.ATTENTION, projection_prng_key=3
    ),
}
# base: methods
BASES = {
    "nf4-dq": ["dora", "ia3", "lokr", "vera"],
    "fp4-dq-skip": ["dora"],
    "int8": ["dora"],
    "gptq-act-order": ["lora", "dora", "ia3"],
    "awq-64": ["lora", "dora"],
}


def dense(out, base):
    """The dequantized model of a stored base."""
    with tempfile.TemporaryDirectory() as folder:
        again = pathlib.Path(folder)
        float_path = again / "bases" / "float"
        shutil.copytree(out / "bases" / "float", float_path)
        if base in tiny_bases.BITSANDBYTES:
            model = tiny_bases.bitsandbytes(again, float_path, base)
        else:
            model = (tiny_bases.gptq if base in tiny_bases.GPTQ else tiny_bases.awq)(again, float_path, base)
        file = pathlib.Path("bases") / base / "golden.safetensors"
        assert (again / file).read_bytes() == (out / file).read_bytes(), base
    model.name_or_path = model.config._name_or_path = base
    return model


def make(out):
    """Writes all of them below `out`/quantized; needs `out`/bases."""
    first, second, third = tiny_tokenizer.prompts()
    prompts = [first, second, third[:9]]
    seed = 3000
    for base, methods in BASES.items():
        model = dense(out, base)
        for method in methods:
            seed += 1
            path = out / "quantized" / f"{method}-on-{base}"
            shutil.rmtree(path, ignore_errors=True)
            adapted = get_peft_model(model, METHODS[method]())
            tiny_methods.randomise(adapted, seed)
            adapted.save_pretrained(path)
            (path / "README.md").unlink(missing_ok=True)
            model = adapted.unload()
            before = [oracle.logits(model, ids) for ids in prompts]
            adapted = PeftModel.from_pretrained(model, path).eval()
            tiny_methods.write(path, base, adapted, prompts, before, path.name)
            model = adapted.unload()
