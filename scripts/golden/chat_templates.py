"""Chat templates in the manner of the field's families, rendered by transformers.

Writes chat_templates.json, a list of cases: name, template, messages, add_generation_prompt, bos_token,
eos_token, tools (or null), and `expected` or `expected_error`. Other keys of a case are further
variables of the template, such as enable_thinking.
"""

import json
import pathlib

import jinja2
from gguf import GGUFReader
from transformers.utils.chat_template_utils import render_jinja_template

from chat_conversations import CONVERSATIONS, EXTRA, TOOLS

TEMPLATES = pathlib.Path(__file__).parent / "templates"
TOKENS = {
    "llama2": ("<s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "mistral_v3": ("<s>", "</s>"),
    "gemma": ("<bos>", "<eos>"),
    "gemma_parts": ("<bos>", "<eos>"),
    "zephyr": ("<s>", "</s>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "smollm2": ("<|im_start|>", "<|im_end|>"),
}
# Template, conversation and further variables of single cases.
SINGLE = [
    ("qwen3", "one", {"enable_thinking": False}),
    ("qwen3", "one", {"enable_thinking": True}),
    ("qwen3", "system turns", {"enable_thinking": False}),
    ("llama3", "system", {"date_string": "24 Nov 2026"}),
    ("llama3", "one", {"custom_tools": TOOLS["two calls"]}),
    ("parts_and_defaults", "turns", {"separator": "§§"}),
    ("python_methods", "methods", {}),
    ("python_methods", "weights", {}),
    ("python_methods", "nothing", {}),
    ("parts_and_defaults", "weights", {}),
    ("parts_and_defaults", "nothing", {}),
    ("whitespace", "nothing", {}),
    ("chatml", "nothing", {}),
    ("tool_macros", "nothing", {}),
]


def case(template, source, conversation, add_generation_prompt, with_tools=False, **variables):
    """One case with its outcome."""
    bos, eos = TOKENS.get(template, (None, "<|im_end|>"))
    tools = TOOLS.get(conversation) if with_tools else None
    messages = {**CONVERSATIONS, **EXTRA}[conversation]
    flags = ["prompt"] * add_generation_prompt + ["tools"] * bool(tools)
    flags += [key if isinstance(value, list) else f"{key}={value}" for key, value in variables.items()]
    made = {
        "name": ", ".join([template, conversation, *flags]),
        "template": source,
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos,
        "eos_token": eos,
        "tools": tools,
        **variables,
    }
    # As in a tokenizer: a token that it does not have is no variable.
    tokens = {"bos_token": bos, "eos_token": eos}
    tokens = {key: token for key, token in tokens.items() if token is not None}
    try:
        made["expected"] = render_jinja_template(
            [messages],
            tools=tools,
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            **tokens,
            **variables,
        )[0][0]
    except (jinja2.TemplateError, TypeError, AttributeError, IndexError) as error:
        made["expected_error"] = str(error)
    return made


def make(out, gguf):
    """Writes the file."""
    sources = {path.stem: path.read_text() for path in sorted(TEMPLATES.glob("*.jinja"))}
    sources["smollm2"] = GGUFReader(gguf).fields["tokenizer.chat_template"].contents()
    cases = []
    for template, source in sources.items():
        for conversation in CONVERSATIONS:
            # The last word of a conversation decides whether an answer is asked for.
            asks = CONVERSATIONS[conversation][-1]["role"] != "assistant"
            cases.append(case(template, source, conversation, asks))
            if conversation in TOOLS:
                cases.append(case(template, source, conversation, asks, with_tools=True))
        cases.append(case(template, source, "turns", False))
        cases.append(case(template, source, "answered", True))
    for template, conversation, variables in SINGLE:
        cases.append(case(template, sources[template], conversation, True, **variables))
    names = [made["name"] for made in cases]
    assert len(set(names)) == len(names)
    lines = ",\n".join(json.dumps(made, ensure_ascii=False) for made in cases)
    (out / "chat_templates.json").write_text(f"[\n{lines}\n]\n")
    num_errors = sum("expected_error" in made for made in cases)
    print(f"chat_templates: {len(sources)} templates, {len(cases)} cases, {num_errors} of them errors")
