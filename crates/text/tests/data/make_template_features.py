"""Writes template_features.json: small templates, one feature each, rendered by transformers.

Run with `transformers` and `jinja2` installed: python make_template_features.py
"""
import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

TOOL = {"type": "function", "function": {"name": "get_weather", "description": "It's \"warm\" <here> & there",
        "parameters": {"type": "object", "properties": {"items": {"type": "array", "items": {"type": "string"}},
        "keys": {"type": "number", "default": 1.0, "enum": [1e20, 1e-7, 0.1, -0.0, 3]}, "ünï": {"default": None, "x": True}},
        "required": ["items"]}}}
CHAT = [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hi ‘there’\r\nA\tB\\ 'q' \"d\" é🙂"},
        {"role": "assistant", "content": "Hello", "tool_calls": [{"id": 7, "type": "function", "function": {"name": "f", "arguments": {"a": [1, 2.5, None, True], "b": "it's"}}}]},
        {"role": "user", "content": [{"type": "text", "text": "part one"}, {"type": "image"}, {"type": "text", "text": "part two "}]}]
SHORT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there "}]

EXPRESSIONS = [
    "messages[0].content | trim", "messages[0]['content'].strip()", "messages[2].tool_calls | tojson",
    "tools | tojson", "tools | tojson(indent=4)", "tools[0] | tojson(indent=2)", "tools | tojson(sort_keys=true)",
    "tools | tojson(separators=(',', ':'))", "tools | tojson(ensure_ascii=true)", "messages | tojson",
    "messages[1].content | tojson", "[] | tojson(indent=2)", "{} | tojson", "[[], {}] | tojson(indent=1)", "none | tojson", "true | tojson",
    "(1, 2) | tojson", "1.0 | tojson", "{'a': {'b': 1}} | tojson(indent='--')",
    "messages[2].tool_calls", "tools", "messages[1].content | string", "{'a': none, 'b': true, \"it's\": 1.5}", "['a', \"it's\", 'x\"y', '\\n', '\\\\']", "(1, 'a')", "(1,)",
    "true", "none", "false", "1.0", "1e20", "1 / 2", "4 // 3", "-7 // 2", "-7 % 3", "7 % 3", "2 ** 10", "10 / 5", "'{} {}'.format('a', 2)", "'{0:>5}|{x}'.format('a', x=3)",
    "undefined_thing", "undefined_thing is defined", "messages[0].nope is defined", "messages[0].nope", "messages[0].nope or 'fallback'", "messages[0].nope | default('d')", "none | default('d')", "none | default('d', true)", "'' | default('d', true)", "undefined_thing | length", "undefined_thing == undefined_thing",
    "undefined_thing is none", "messages is sequence", "'x' is sequence", "messages[0] is sequence", "1 is sequence", "messages[0] is mapping", "messages is mapping", "'x' is iterable", "1 is iterable", "messages is iterable", "messages[0] is iterable",
    "'x' is string", "1 is number", "true is number", "1 is integer", "true is integer", "1.0 is float", "true is boolean", "none is none", "1 is odd", "2 is even", "3 is divisibleby(3)", "'a' is in 'abc'", "'a' in messages[0]", "'role' in messages[0]", "'x' not in 'abc'", "1 < 2 < 3", "messages[0].role == 'system' and not false", "tools is not none", "documents is none", "documents is defined", "x is defined",
    "messages[1:] | length", "messages[-1].role", "messages[::-1][0].role", "'abcdef'[1:3]", "'abcdef'[::-1]", "'abc'[0]", "'abc'[-1]", "'abc'['x'] is defined", "messages[1].content[:5]",
    "'a b  c'.split()", "'a,b,c'.split(',')", "'a,b,c'.split(',', 1)", "'a,b,c'.rsplit(',', 1)", "'a b c'.rsplit(none, 1)", "'a,b,c'.split(',')[-1]", "' x '.lstrip()", "' x '.rstrip()", "'xxaxx'.strip('x')", "'a</think>b'.split('</think>')[-1].lstrip('\\n')",
    "'abc'.startswith('ab')", "'abc'.endswith(('bc', 'x'))", "'abc'.upper()", "'ABC'.lower()", "'abc def'.title()", "'aBC'.capitalize()", "'abc'.replace('b', 'x')", "'aaa'.replace('a', 'b', 2)", "'abc'.find('c')", "'abc'.find('z')", "'abcabc'.rfind('b')", "'abc'.count('b')", "'é-b'.index('b')", "','.join(['a', 'b'])", "'abc'.isdigit()", "'12'.isdigit()", "'ab'.isalpha()", "'a1'.isalnum()", "'  '.isspace()", "'ab'.islower()", "'AB'.isupper()",
    "'abc'.removeprefix('ab')", "'abc'.removesuffix('bc')", "'a-b-c'.partition('-')", "'a-b-c'.rpartition('-')", "'abc'.partition('x')", "'abc-'.partition('-')", "'abc'.rpartition('x')", "'ab'.ljust(5, '.')", "'ab'.rjust(5)", "'ab'.center(5, '*')", "'abc'.center(6, '*')", "'abc'.center(8, '*')", "'-7'.zfill(4)", "'ÀB'.casefold()", "'a\\r\\nb\\x0bc\\n\\nd'.splitlines()", "'a\\nb\\n'.splitlines(true)",
    "messages[0].items() | list", "messages[0].keys() | list", "messages[0].values() | list", "messages[0].get('role')", "messages[0].get('nope')", "messages[0].get('nope', 'd')", "tools[0].function.parameters.properties.items() | list | length", "tools[0].function.parameters.properties.keys() | list", "tools[0].function.parameters.properties['items'].type", "messages[0] | items | list", "messages[0] | dictsort", "{'b': 1, 'a': 2} | dictsort", "{'b': 1}.copy()", "[1, 2, 1].count(1)", "['a', 'b'].index('b')",
    "messages | map(attribute='role') | list", "messages | map(attribute='role') | join(', ')", "messages | selectattr('role', 'equalto', 'user') | list | length", "messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | list", "[1, 2, 3] | select('odd') | list", "[3, 1, 2] | sort", "[3, 1, 2] | sort(reverse=true)", "messages | sort(attribute='role') | map(attribute='role') | join(',')", "[1, 2] + [3]", "[1, 2] | first", "[1, 2] | last", "[1, 2, 3] | sum", "[1, 2, 3] | max", "[1, 2, 3] | min", "[1, 1, 2] | unique | list", "[1, 2] | reverse | list", "'abc' | reverse", "range(3) | list", "range(1, 10, 3) | list", "['a', 'b'] | join", "[1, 2, 3, 4] | batch(2) | list", "[1, 2, 3] | length", "messages | groupby('role') | map('first') | list", "'abc' | list", "[[1, 2], [3]] | map('length') | list", "['a', 'b'] | map('upper') | list",
    "'a\\nb' | indent", "'a\\nb\\n\\nc' | indent(2, true)", "'a\\nb' | indent(4, first=true)", "'abc' | upper", "'ABC def' | lower", "'a b' | title", "'a b' | capitalize", "'a b' | replace('a', 'x')", "' a ' | trim", "'xax' | trim('x')", "'3' | int", "'3.7' | float", "3.7 | int", "'x' | int", "3.14159 | round(2)", "3.5 | round", "-3 | abs", "'<a>' | escape", "\"<'&\\\">\" | e", "'<a>' | safe", "'%s!' | format('hi')", "'a b c' | wordcount", "'abcdefghijklmnop' | truncate(8)", "'ab' | center(6)", "1 ~ 'a' ~ none ~ true", "'a' ~ 1.5", "'a' * 3", "'a' 'b'", "['a'] * 2", "'x' if true else 'y'", "'x' if false", "not true", "(1 == 1.0)", "1 != 2", "'a' < 'b'", "[1, 2] == [1, 2]", "{'a': 1} == {'a': 1}", "dict(a=1, b='x')", "'\\u2581\\x41\\t|'", "'a' in ['a', 'b']", "loop is defined", "namespace(a=1).a", "1_000", "0x10", "'\\''", "messages[3].content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('')", "tools | string | length", "[1.0, (1e20, {}), [[]]]", "messages[2] | string", "'a-b' | replace('-', '\\n')", "messages[2].tool_calls[0].function.arguments | items | list", "messages[2].tool_calls[0].function.arguments.a | tojson", "['b', 'A'] | sort", "{'a': 1}['a']", "{'a': {'b': 2}}.a.b", "'é' | tojson", "'a' is eq 'a'", "3 is gt 2", "messages[0].role is eq('system')", "messages[0]['role'] is in ['system', 'user']", "'abc' | first", "none is undefined", "3 is not none", "'' is none", "[none, 1] | select | list", "[0, 1] | reject('none') | list", "'a=%s' | format(3)",
]

BLOCKS = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + (message.content if message.content is string else 'L') + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "trim_blocks": "{% if true %}\n  a\n{% endif %}\n  b\n    {% if true %}  \n  c\n    {%- endif %}\n\nend\n",
    "lstrip": "  {% set x = 1 %}\n  {{ x }}\n\t{# comment #}\n   text {% if x %} y{% endif %}  \n",
    "plus": "  {%+ if true %}a{%+ endif +%}\n b\n",
    "trailing newline": "a\n\n",
    "one newline": "a\n",
    "carriage returns": "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\rd",
    "comment": "a {#- x -#}  b {# y #}\nc",
    "raw": "{% raw %}{{ x }}{% endraw %}\n!",
    "namespace": "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.found = true %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.n }}",
    "scope": "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}",
    "loop": "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.previtem.role if loop.previtem is defined else '-' }}{{ loop.nextitem.role if loop.nextitem is defined else '-' }};{% else %}none{% endfor %}",
    "loop else": "{% for m in [] %}x{% else %}none{% endfor %}",
    "loop if": "{% for m in messages if m.role != 'user' %}{{ loop.index }}{{ m.role }}{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{% if loop.index == 4 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "loop dict": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}{% for k in messages[0] %}{{ k }}{% endfor %}",
    "loop cycle": "{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{{ loop.changed(i) }}{% endfor %}",
    "recursive": "{% for i in [1, [2, [3]]] recursive %}{% if i is number %}{{ i }}{% else %}({{ loop(i) }}){% endif %}{% endfor %}",
    "macro": "{% macro f(a, b='d', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}{{ f('x', 'y', 3) }}",
    "macro recursive": "{% macro show(p) -%}\n{%- for k, v in p.items() %}\n{{ k }}: {% if v is mapping %}{ {{- show(v) -}} }{% else %}{{ v | tojson }}{% endif %},\n{%- endfor %}\n{%- endmacro %}{{ show(tools[0].function) }}",
    "macro global": "{% set g = 5 %}{% macro f() %}{{ g }}{{ messages | length }}{% endmacro %}{{ f() }}",
    "call": "{% macro box(t) %}<{{ t }}:{{ caller() }}>{% endmacro %}{% call box('a') %}in{% endcall %}",
    "filter block": "{% filter upper %}abc {{ messages[0].role }}{% endfilter %}",
    "set block": "{% set x %}a{{ 1 }}\n{% endset %}[{{ x }}]{{ x | length }}",
    "with": "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}",
    "unpack": "{% set a, b = (1, 2) %}{{ a }}{{ b }}{% for x, y in [(1, 2), [3, 4]] %}{{ x }}{{ y }}{% endfor %}",
    "elif": "{% for m in messages %}{% if m.role == 'system' %}S{% elif m.role == 'user' %}U{% else %}A{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}\n{% if m.role == 'assistant' %}\n{% generation %}\n{{ m.content }}\n{% endgeneration %}\n{% else %}{{ m.role }}{% endif %}\n{% endfor %}",
    "generation trims": "a {%- generation -%} b {%- endgeneration -%} c",
    "raise": "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}",
    "raise unless": "{% if messages[0].role != 'tool' %}{{ raise_exception('no tool: ' + messages[0].role) }}{% endif %}",
    "bos eos": "{{ bos_token }}{{ messages[0].role + eos_token }}{{ pad_token }}",
    "missing method": "{{ messages.append(1) }}",
    "attribute of undefined": "{{ nope.deep }}",
    "syntax error": "{% if %}",
    "add undefined": "{{ 'a' + nope }}",
    "add none": "{{ 'a' + none }}",
    "json of undefined": "{{ nope | tojson }}",
    "kwargs": "{{ enable_thinking }}{% if enable_thinking is defined and enable_thinking is false %}off{% endif %}{{ x.y[1] }}",
    "reasoning": "{{ messages }}",
    "do nothing": "",
    "text": "no tags at all ✓ \n\n",
    "inline if": "{{ 'a' if messages[0].content is string and messages[0].content | length > 3 else 'b' }}{{- '\n' }}",
    "comment with tag": "{# {% if %} #}x",
    "string with delimiters": "{{ '{% x %} }} {#' }}",
    "whitespace in string": "{{ '\n\n  a' }}{{- 'b' -}}  c",
    "nested quotes": "{{ \"it's\" + ' \"x\"' }}",
    "long": "{% for i in range(500) %}{{ i }},{% endfor %}",
    "self": "{% for m in messages %}{% set content = m.content %}{% if content is not string %}{% set content = content | map(attribute='text') | select('defined') | join('') %}{% endif %}{{ content }}|{% endfor %}",
    "reverse index": "{% set ns = namespace(last=-1) %}{% for m in messages[::-1] %}{% set i = (messages | length - 1) - loop.index0 %}{% if ns.last < 0 and m.role == 'user' %}{% set ns.last = i %}{% endif %}{% endfor %}{{ ns.last }}",
}


def render(template, messages, **kwargs):
    try:
        return {"expected": render_jinja_template([messages], chat_template=template, **kwargs)[0][0]}
    except Exception as error:
        return {"expected_error": f"{type(error).__name__}: {error}"}


def main():
    cases = []

    def add(name, template, messages, **kwargs):
        outcome = render(template, json.loads(json.dumps(messages)), **kwargs)
        own = {key: value for key, value in kwargs.items() if common.get(key) != value}
        own |= {} if messages is CHAT else {"messages": messages}
        cases.append({"name": name, "template": template, **own, **outcome})

    common = {"tools": [TOOL], "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
    for expression in EXPRESSIONS:
        add(expression, "{{ " + expression + " }}", CHAT, **common)
    for name, template in BLOCKS.items():
        extra = {"enable_thinking": False, "x": {"y": [1, 2.5]}} if name == "kwargs" else {}
        messages = CHAT
        if name == "reasoning":
            messages = [{"role": "assistant", "content": "x", "reasoning": "because"}, {"role": "a", "thinking": "t", "content": None}, {"role": "u", "content": "p", "reasoning_content": None}]
        add(name, template, messages, **common, **extra)
    chatml = BLOCKS["chatml"]
    trimmed = "{% for m in messages %}{{ m.role }}:{{ m.content | trim }}</s>{% endfor %}"
    parts = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}</s>{% endfor %}"
    for name, template, messages in [
        ("continue", chatml, SHORT), ("continue trimmed", trimmed, SHORT),
        ("continue parts", parts, [{"role": "user", "content": [{"text": "a "}, {"type": "image"}]}]),
        ("continue nothing", chatml, []), ("continue ignored", "{{ messages[0].content }}", SHORT),
        ("continue unread", "{{ messages }}".replace("messages", "bos_token"), SHORT),
        ("continue null", chatml, [{"role": "user", "content": None}]),
    ]:
        add(name, template, messages, continue_final_message=True, **{**common, "add_generation_prompt": False})
    # What a case does not say stands under "common".
    document = {"common": {"messages": CHAT, **common}, "cases": cases}
    text = json.dumps(document, ensure_ascii=False, indent=0)
    pathlib.Path(__file__).with_name("template_features.json").write_text(text + "\n")
    print(len(cases), "cases;", sum("expected_error" in case for case in cases), "errors")
    for case in cases:
        if "expected_error" in case:
            print("  ", case["name"], "->", case["expected_error"][:100])


main()
