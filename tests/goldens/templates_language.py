"""Single constructs of the template language for `templates.py`: what each prints, or how it fails.

Sources are kept short, so that a difference names its cause. Variables come as keyword arguments of the template.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
HELLO = [{"role": "user", "content": "Hello"}]
FIELDS = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenizer"}
# name -> (source, fields of the case)
LANGUAGE: dict[str, tuple[Any, Json]] = {}


def snippet(name: str, source: Any, **values: Any) -> None:
    assert name not in LANGUAGE, name
    fields: Json = {key: values.pop(key) for key in list(values) if key in FIELDS}
    fields.setdefault("messages", HELLO)
    if values:
        fields["kwargs"] = values
    LANGUAGE[name] = (source, fields)


def each(group: str, **sources: str) -> None:
    for name, source in sources.items():
        snippet(f"{group}/{name.rstrip('_').replace('_', '-')}", source)


def prints(name: str, *expressions: str, **values: Any) -> None:
    """One template that prints all the expressions, one a line."""
    snippet(name, "\n".join("{{ " + expression + " }}" for expression in expressions) + "\n|", **values)


def fails(group: str, **expressions: str) -> None:
    """One template for each expression, for the first error ends it."""
    for name, expression in expressions.items():
        snippet(f"{group}/{name.rstrip('_').replace('_', '-')}", "{{ " + expression + " }}")


# --- printing --------------------------------------------------------------------------------------------------------

prints("print/constants", "none", "None", "true", "True", "false", "False")
prints("print/integers", "0", "-0", "7", "1_000", "0x1f", "0b101", "0o17", "9007199254740993", "9223372036854775807")
prints("print/big-integers", "9223372036854775808", "2**64", "10**20", "-(2**70)", "10**20 // 7", "2**64 - 2**64 + 1")
prints(
    "print/floats", "1.0", "0.1", "1.5e3", "1e15", "1e16", "1e17", "123456789.125", "1e-4", "1e-5", "0.1 + 0.2", "-0.0",
    "1e100", "5e-324", "1.7976931348623157e308", "3.0e0",
)  # fmt: skip
prints("print/infinities", "1e308 * 10", "-1e308 * 10", "1e308 * 10 - 1e308 * 10", "[1e308 * 10]")
prints("print/lists", "[]", "[1, 2.0, 'a', none, true]", "[[], [[]]]", "['a', ['b', ('c',)]]", "[1, ]")
prints("print/tuples", "()", "(1,)", "(1, 2)", "1, 2", "('a', [1], {})", "(1)", "1,")
prints(
    "print/dicts", "{}", "{'a': 1}", "{'b': 1, 'a': {'c': [none]}}", "{1: 2, none: 3, 2.5: 4, false: 5, (1, 2): 6}",
    "{'a': 1, 'a': 2}", "dict(a=1, b='x')", "dict({'a': 1}, b=2)", "dict([('a', 1), ['b', 2]])", "dict()",
)  # fmt: skip
prints(
    "print/views", "{'a': 1}.items()", "{'a': 1}.keys()", "{'a': 1}.values()", "range(3)", "range(1, 9, 2)",
    "{'a': 1}.items() | list",
)  # fmt: skip
prints(
    "print/strings", "'it\\'s'", '"double \\" quote"', "['it\\'s']", "['say \"x\"']", "['it\\'s \"x\"']",
    "['back\\\\slash']", "['a\\nb\\tc\\rd']", "['']",
)  # fmt: skip
prints(
    "print/repr-unicode", "[a]", "[b]", "[c]", "[d]", "[e]", "{a: b}", a="é ü ß", b="日本語 🙂", c="\u200b\xa0\u2028\ufeff",
    d="\x00\x1f\x7f\x80\xad", e="\U000e0001\ue000\u0378",
)  # fmt: skip
prints(
    "print/kwargs", "i", "f", "g", "n", "t", "s", "l", "d", i=3, f=2.0, g=1e22, n=None, t=True, s="x\ny",
    l=[1, [2.5, "a'b"]], d={"k": {"n": None}, "é": '"'},
)  # fmt: skip
prints("print/json-integers", "a", "b", "a + 1", "b - 1", "[a, b]", a=9223372036854775807, b=18446744073709551615)
prints("print/namespace", "namespace()", "namespace(a=1, b='x')", "namespace({'a': [1]})", "namespace({'a': 1}, b=2)")
snippet(
    "print/macro",
    "{% macro m(a, b=1) %}{% endmacro %}{{ m }} {{ m.name }} {{ m.arguments }} {{ m.catch_kwargs }} {{ m.catch_varargs }} {{ m.caller }}",
)  # fmt: skip
snippet("print/loop", "{% for x in [1, 2, 3] %}{{ loop }} {% endfor %}")
snippet("print/self", "{{ self }}{{ self is defined }}")
snippet(
    "print/undefined",
    "[{{ nope }}][{{ messages[0].nope }}][{{ messages[9] }}][{{ nope | string }}][{{ [nope] }}][{{ none.x }}]",
)  # fmt: skip
snippet(
    "print/whole-messages", "{{ messages }}",
    messages=[{"role": "user", "content": [{"type": "text", "text": "it's \"so\"\n"}, {"n": 1.0, "t": True, "z": None}]}],
)  # fmt: skip
prints("print/nested-undefined", "{'a': nope}", "(nope, 1)")

# --- literals and lexing ---------------------------------------------------------------------------------------------

prints(
    "literal/escapes", "'\\x41\\u00e9\\U0001F600'", "'\\101\\0\\7' | length", "'\\q\\-'", "'\\\\n'", "'a\\\nb'",
    "'\\N{BULLET}'", "'tab\\there'",
)  # fmt: skip
prints("literal/adjacent-strings", "'a' 'b'", "'a' \"b\" 'c' | upper", "['x' 'y']")
prints("literal/newline-in-string", "'a\nb' | length", "'a\r\nb' | length", "'a\rb' | tojson")
prints("literal/unicode", "'日本 🙂 é'", "'｜▁｜' | length", "'🙂' | length", "'e\u0301' | length")
each(
    "literal",
    unicode_names="{% set été = 1 %}{% set 名 = 2 %}{{ été + 名 }}",
    bad_escape="{{ '\\x4' }}",
    bad_name="{{ a² }}",
    unterminated="{{ 'abc }}",
    braces_in_string="{{ '}}' }}{{ '{% x %}' }}{{ {'a': {'b': '}}'}}['a']['b'] }}",
    braces_end="{{ {'a': {'b': 1}}}}",
    dict_end="{{ {'a': 1}['a']}}",
    single_brace="{ {a} } {% raw %}{{ x }}{% endraw %} {#}#} %} }} #}",
    keywords_as_names="{% set content = 1 %}{% set items = 2 %}{% set recursive = 3 %}{% set with = 4 %}{{ content + items + recursive + with }}",
    reserved_name="{% set true = 1 %}",
    attribute_digits="{{ [[1, 2], 3].0.1 }}",
    attribute_float="{{ [[1, 2], 3].0 }}",
    float_forms="{{ 1.5E2 }} {{ 1e+2 }} {{ 2.0.is_integer() }} {{ 1_0.0_1 }}",
)

# --- whitespace ------------------------------------------------------------------------------------------------------

each(
    "whitespace",
    trim_blocks="a\n{% if true %}\nb\n{% endif %}\nc\n{{ 1 }}\nd\n",
    lstrip_blocks="a\n   {% if true %}\n\t b\n \t{% endif %}\n  {{ 1 }}\n  {# c #}\n  d",
    lstrip_not_first="a  {% if true %}  b  {% endif %}  c\n  {{ 1 }}  {% if true %}  d{% endif %}",
    lstrip_at_start="   {% if true %}x{% endif %}   {% if true %}y{% endif %}",
    lstrip_after_block="{% if true %}\n   {% if true %}\n   x{% endif %}\n   {% endif %}\ny",
    minus="a \n {%- if true -%} \n b \n {%- endif -%} \n c {{- 1 -}} d \n {{- 2 }} e {{ 3 -}} \n f",
    minus_left_only="a \n {%- if true %}\n b {%- endif %}\n c",
    minus_right_only="a \n {% if true -%}\n b {% endif -%}\n c",
    plus="a\n  {%+ if true +%}\n  b\n  {%+ endif +%}\n  c",
    comments="a \n {#- x -#} \n b\n{# y #}\nc {# z -#}  d  {#- w #} e\n  {#+ v +#}\nf",
    comment_multiline="a\n{# one\n two {{ x }} {% y %}\n#}\nb",
    comment_empty="{##}a{#-#}b{# #}",
    crlf="a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n",
    carriage_return="a\r{% if true %}\rb{% endif %}\rc\r",
    trailing_newline="a\n",
    trailing_newlines="a\n\n\n",
    trailing_newline_expression="{{ 'a' }}\n",
    only_newline="\n",
    empty="",
    unicode_spaces="a\u00a0\u2003\u3000{%- if true -%}\u00a0\u2028b\u200b{%- endif -%}\u200bc\u0085{{- 1 -}}\u001cd\u001f{#- -#}\u180ee",
    lstrip_unicode_spaces="a\n\u00a0\u2003{% if true %}b{% endif %}\n\u001c{% if true %}c{% endif %}\n\u200b{% if true %}d{% endif %}",
    lstrip_formfeed="a\n\f\v {% if true %}b{% endif %}",
    raw="{% raw %}\n{{ a }} {% b %} {# c #}\n{% endraw %}\nd",
    raw_minus="a {%- raw -%} {{ b }} {%- endraw -%} c",
    raw_lstrip="a\n  {% raw %}\n  {{ b }}\n  {% endraw %}\n  c",
    raw_plus="a\n  {%+ raw %} {{ b }} {% endraw +%}\nc",
    tag_spacing="{%if true%}a{%endif%}{{1}}{%-if true-%}b{%-endif-%}{{-2-}}",
    newlines_in_tags="{%\nif\ntrue\n%}\na{{\n1\n+\n2\n}}{% endif\n%}",
    blank_lines="{% set a = 1 %}\n\n{% set b = 2 %}\n\n\n{{ a + b }}\n\n{% if true %}\n\n{% endif %}\n\nx",
    variable_keeps_newline="{{ 1 }}\n{{ 2 }}\n\n{{ 3 }}",
    expression_minus_number="{{-1}} {{ -1 }} {{- 1 }} {{--1}}",
    loop_body="{% for x in [1, 2] %}\n  {{ x }}\n{% endfor %}\nend",
    loop_body_minus="{%- for x in [1, 2] -%}\n  {{ x }}\n{%- endfor -%}\nend",
    set_block="a\n{% set x %}\n  b\n{% endset %}\n[{{ x }}]",
    for_else="{% for x in [] %}\nx\n{% else %}\nnone\n{% endfor %}\nend",
    generation="a\n  {% generation %}\n  b\n  {% endgeneration %}\n  c {%- generation -%} d {%- endgeneration -%} e",
    macro_body="{% macro m() %}\n  x\n{% endmacro %}\n[{{ m() }}]\n",
)

# --- operators -------------------------------------------------------------------------------------------------------

prints(
    "operator/arithmetic", "7 / 2", "4 / 2", "7 // 2", "-7 // 2", "7 // -2", "7 % 3", "-7 % 3", "7 % -3", "7.5 // 2",
    "-7.5 % 2", "2 ** 10", "2 ** -1", "2 ** 0.5", "2 ** 3 ** 2", "-2 ** 2", "1 + 2 * 3", "(1 + 2) * 3", "1 - 2 - 3",
    "2 * 3 % 4", "10 // 3 * 3", "1.0 * 3", "3 - 1.5", "0 ** 0", "+5", "- -5",
)  # fmt: skip
prints(
    "operator/booleans-as-numbers", "true + 1", "true + true", "-true", "true * 'x'", "false // 1", "true / 2", "+true",
)  # fmt: skip
prints(
    "operator/strings", "'a' + 'b'", "'ab' * 3", "3 * 'ab'", "'ab' * 0", "'ab' * -1", "'a' + 'b' * 2",
    "'%s-%s' % ('a', 1)", "'%s' % 'x'", "'%s' % [1, 'a']", "'%d%%' % 50",
)  # fmt: skip
prints("operator/lists", "[1] + [2]", "[1] * 2", "2 * [1, 2]", "(1,) + (2,)", "[1] + [[2]] + []", "[] * 5")
prints(
    "operator/concat", "'a' ~ 1", "1 ~ 2", "none ~ true ~ 1.0", "'a' ~ [1, 'b'] ~ {'c': 1}", "'a' ~ nope ~ 'b'",
    "1 + 1 ~ 'x' if false else 2 * 3 ~ 'x'", "'a' ~ 'b' * 2", "1 ~ 2 * 3", "('x' ~ 1) | length", "'x' ~ 'abc' | length",
)  # fmt: skip
prints(
    "operator/comparison", "1 < 2", "2 <= 2", "1 > 2", "1 >= 2", "1 == 1.0", "1 != 1", "'a' < 'b'", "'Z' < 'a'",
    "[1, 2] < [1, 3]", "(1, 2) < (1, 2, 3)", "'a' == 1", "none == false", "none == none", "true == 1", "false == 0",
    "'' == false", "[] == false", "'é' > 'z'",
)  # fmt: skip
prints(
    "operator/equality", "[1, 2] == [1, 2]", "[1] == (1,)", "{'a': 1, 'b': 2} == {'b': 2, 'a': 1}",
    "{'a': [1]} == {'a': [1.0]}", "'1' == 1", "nope == nada", "nope == none", "nope == ''", "nope != nope",
    "[nope] == [nada]", "messages[0] == messages[-1]", "range(3) == range(0, 3)", "range(3) == [0, 1, 2]",
)  # fmt: skip
prints(
    "operator/chained", "1 < 2 < 3", "1 < 3 < 2", "3 > 2 == 2", "1 == 1 == 1.0", "1 < 2 > 0 != 5", "1 in [1] == true",
    "not 1 < 2 < 3", "'a' < 'b' < 'c' in ['c']",
)  # fmt: skip
prints(
    "operator/logic", "true and false", "1 and 2", "0 and 2", "0 or 'x'", "'' or none or []", "1 or 2", "not 1",
    "not ''", "not []", "not none", "not {}", "not not 'a'", "true or nope.x", "false and nope.x", "nope or 'd'",
    "1 and 'a' or 'b'", "0 == 1 or 1 == 1 and 0", "not true == false", "not 0 == 1", "not (1 and 0)",
)  # fmt: skip
prints(
    "operator/membership", "1 in [1, 2]", "3 not in [1, 2]", "'a' in 'cat'", "'' in 'cat'", "'ab' in ['a', 'b']",
    "'a' in {'a': none}", "1 in {1.0: 2}", "'a' not in {'a': 1}", "not 'a' in 'b'", "not 'a' not in 'b'", "1 in (1,)",
    "2 in range(3)", "1.0 in [1]", "true in [1]", "none in [none]", "'x' in nope", "nope in [1]", "nope in [nada]",
    "[1] in [[1]]", "('a', 1) in {'a': 1}.items()", "'a' in {'a': 1}.keys()", "1 in {'a': 1}.values()",
    "'role' in messages[0]", "'é' in 'café'",
)  # fmt: skip
prints(
    "operator/conditional", "'a' if true else 'b'", "'a' if false else 'b'", "'a' if false",
    "('a' if false) is defined", "'a' if false else 'b' if false else 'c'", "('a' if true else 'b') ~ 'c'",
    "'a' if 0 else 'b' ~ 'c'", "1 if 2 > 1 and 3 > 2 else 0", "'x' + ('y' if true else 'z')", "[1 if true else 2, 3]",
    "'a' if nope else 'b'", "('a' if true else 'b') | upper", "'a' if true else 'b' | upper",
    "nope.x.y if false else 'ok'",
)  # fmt: skip
prints(
    "operator/precedence", "-1 | abs", "- 3 | abs", "'2' + 3 | string ~ 'x'", "1 + 1 is even", "1 + (1 is even)",
    "not 1 is even", "'a' ~ 'b' | upper", "('a' ~ 'b') | upper", "1 is defined and nope is defined", "1 == 1 is true",
    "2 * 'a' | upper", "-2 ** 2", "(-2) ** 2", "1 if 1 is odd else 2", "'a' in 'abc' and 'd' not in 'abc'",
    "not nope is defined", "nope is not defined", "[3, 1] | sort | first + 1", "-5 | string | length",
    "10 - 2 | int * 3",
)  # fmt: skip
fails(
    "operator-error", neg_before_filter="-'5' | int",
    add_str_int="'a' + 1", add_int_str="1 + 'a'", add_none="'a' + none", add_list_str="[1] + 'a'", add_dict="{} + {}",
    sub_str="'a' - 'b'", mul_str="'a' * 'b'", mul_float="'a' * 2.0", div_zero="1 / 0", floordiv_zero="1 // 0",
    mod_zero="1 % 0", float_div_zero="1.0 / 0", less_mixed="1 < 'a'", less_none="none < 1", less_dicts="{} < {}",
    in_number="1 in 5", in_string="1 in 'abc'", in_none="'a' in none", neg_string="-'a'", concat_then_add="1 ~ 2 + 3",
    list_plus_tuple="[1] + (2,)", format_missing="'%s %s' % 'a'", format_extra="'%s' % ('a', 'b')",
    format_type="'%d' % 'a'", unhashable="{[1]: 2}", unhashable_in="[1] in {'a': 1}", big_range="range(1000000)",
    zero_step="[1, 2][::0]", slice_none="none[1:]", undefined_add="nope + 'a'", undefined_radd="'a' + nope",
    conditional_add="('a' if false) + 'b'",
)  # fmt: skip

# --- subscripts and attributes ---------------------------------------------------------------------------------------

prints(
    "slice/list", "l[1:]", "l[:2]", "l[-2:]", "l[:-1]", "l[::2]", "l[::-1]", "l[1:4:2]", "l[4:1:-1]", "l[-1:-4:-2]",
    "l[:]", "l[9:]", "l[-9:2]", "l[2:1]", "l[none:2]", "l[1:none]", "l[i:i + 2]", l=[0, 1, 2, 3, 4], i=1,
)  # fmt: skip
prints(
    "slice/string", "s[1:]", "s[:2]", "s[-1]", "s[::-1]", "s[1:-1]", "s[0]", "s[:-2]", "s[::2]", "s[9:] | tojson",
    s="añ日🙂z",
)  # fmt: skip
prints(
    "slice/tuple-and-range", "(1, 2, 3)[1:]", "(1, 2, 3)[::-1]", "range(10)[2:4]", "range(10)[-1]",
    "range(5)[::-1] | list",
)  # fmt: skip
prints(
    "slice/negative-index", "l[-1]", "l[-3]", "l[-4] is defined", "l[3] is defined", "messages[-1].role",
    "'abc'[-4] is defined", l=[1, 2, 3],
)  # fmt: skip
snippet(
    "lookup/dict-method-first",
    "{{ m['items'] }} {{ m['get'] }} {{ m['keys'] }} {{ m.items is callable }} {{ m.get is callable }} {{ m.get('x') }} {{ m.x }} {{ m.items() | length }} {{ m.missing is defined }} {{ m['missing'] is defined }} {{ m['copy'] is callable }}",
    m={"items": 1, "get": 2, "keys": 3, "x": 4},
)  # fmt: skip
snippet(
    "lookup/keys-of-other-types",
    "{% set d = {1: 'i', 2.5: 'f', none: 'n', 'a': 's', (1, 2): 't'} %}{{ d[1] }}{{ d[1.0] }}{{ d[true] }}{{ d[2.5] }}{{ d[none] }}{{ d.a }}{{ d[(1, 2)] }}{{ d[1, 2] }}{{ d.1 }}{{ d['1'] is defined }}",
)  # fmt: skip
snippet("lookup/bool-and-int-keys-collide", "{{ {1: 'a', true: 'b', 1.0: 'c'} }}{{ {0: 1, false: 2} | length }}")
snippet(
    "lookup/string-subscript-of-list",
    "{{ l['x'] is defined }}{{ l.x is defined }}{{ l.0 }}{{ l[0] }}{{ l['0'] is defined }}{{ l.index(2) }}{{ l['index'](2) }}{{ l[true] }}{{ l[1.0] is defined }}",
    l=[1, 2],
)  # fmt: skip
snippet(
    "lookup/attributes-of-scalars",
    "{{ 'a'.upper() }}{{ 'a'['upper']() }}{{ (1).real }}{{ (1.5).imag }}{{ none.x is defined }}{{ true.real }}{{ (5).bit_length() }}{{ 2.5.is_integer() }}{{ 'a'.nope is defined }}{{ (7).numerator }}",
)  # fmt: skip
snippet(
    "lookup/content-or-attribute",
    "{% for m in messages %}{{ m['content'] }}{{ m.content }}{{ m.get('content') }}{{ m['role'] == m.role }}{{ m.tool_calls is defined }}{{ m['tool_calls'] is defined }}{{ m.get('tool_calls') is none }}{{ 'tool_calls' in m }}|{% endfor %}",
    messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": []}],
)  # fmt: skip
snippet(
    "lookup/computed",
    "{% set k = 'ro' %}{{ messages[0][k ~ 'le'] }}{{ messages[messages | length - 1]['con' 'tent'] }}{{ {'a': [10, 20]}['a'][1] }}{{ [[1, 2], [3]][0][1] }}{{ ['a', 'b'][1 if true else 0] }}",
)  # fmt: skip
snippet(
    "lookup/defined-nested",
    "{{ a is defined }}{{ a.b is defined }}{{ a.b.c is defined }}{{ a.x is defined }}{{ a['b']['c'] is not none }}{{ nope is defined }}",
    a={"b": {"c": None}},
)  # fmt: skip
snippet(
    "lookup/private", "[{{ ''.__class__ }}][{{ m.__class__ }}][{{ m._x }}][{{ m['_x'] }}][{{ [].__len__ is defined }}]",
    m={"_x": 1},
)  # fmt: skip
fails(
    "lookup-error",
    undefined_attribute="nope.x", undefined_item="nope['x']", undefined_call="nope()", undefined_slice="nope[1:]",
    missing_attribute="messages[0].nope.x", missing_item="messages[0]['nope']['x']", missing_index="messages[9].role",
    missing_list_key="messages.role.x", none_attribute="none.x.y", int_key="messages[0][3].x", string_index="'abc'[9].x",
    nested_undefined="messages[0].content.nope.x", undefined_method="messages[0].nope()", call_string="'a'()",
    call_none="none()", private_call="''.__class__()", private_chain="''.__class__.__mro__", undefined_for_key="messages[nope].x",
    dict_key_unhashable="messages[0][[1]].x", method_missing="'a'.nope()",
)  # fmt: skip

# --- undefined -------------------------------------------------------------------------------------------------------

prints(
    "undefined/filters", "nope | length", "nope | list", "nope | join(',')", "nope | upper", "nope | trim",
    "nope | default('d')", "nope | string | length", "nope | first is defined", "nope | last is defined", "nope | sum",
    "nope | sort", "nope | unique | list", "nope | map('upper') | list", "nope | select | list",
    "nope | reverse | list", "nope | items | list", "nope | replace('a', 'b')", "nope | escape", "nope | safe",
    "nope | title", "nope | capitalize", "nope | wordcount", "nope | batch(2) | list", "nope | groupby('x')",
    "nope | min is defined", "nope | truncate", "nope | slice(2) | list", "nope | urlencode", "nope | striptags",
)  # fmt: skip
prints(
    "undefined/default-chains", "nope | default('a')", "nope | default",
    "nope.x | default('b') if nope is defined else 'c'", "messages[0].nope | default('d')", "none | default('e')",
    "none | default('f', true)", "'' | default('g', true)", "'' | default('h')", "0 | default('i', boolean=true)",
    "false | d('j', true)", "nope | default(none)", "nope | default(nada) | default('k')", "[] | default('l', true)",
    "nope | default('m') | upper",
)  # fmt: skip
prints(
    "undefined/tests", "nope is defined", "nope is undefined", "nope is none", "nope is string", "nope is mapping",
    "nope is iterable", "nope is sequence", "nope is number", "nope is callable", "nope is true", "nope is false",
    "nope is boolean", "nope is sameas nope", "nope is eq nada", "nope is in [1]",
)  # fmt: skip
snippet(
    "undefined/statements",
    "{% if nope %}a{% else %}b{% endif %}{% for x in nope %}c{% else %}d{% endfor %}{% if nope is defined and nope.x %}e{% endif %}{% if not nope %}f{% endif %}{% set y = nope %}{{ y is defined }}{% for k, v in nope %}{% endfor %}",
)  # fmt: skip
fails(
    "undefined-error",
    filter_int="nope | int", filter_float="nope | float", filter_abs="nope | abs", filter_round="nope | round",
    filter_tojson="nope | tojson", filter_indent="nope | indent", filter_wordwrap="nope | wordwrap", replace_by="'a'.replace('a', nope)", filter_dictsort="nope | dictsort", less="nope < 1", negative="-nope", mul="nope * 2",
    mod="nope % 2", rmod="'%d' % nope", message_mul="messages[0].nope * 2", test_even="nope is even", attribute_filter="nope | attr('x') | upper ~ nope.x",
    range_of="range(nope)", dict_of="dict(nope, **nope)", startswith="'a'.startswith(nope)", join_with="'a'.join(nope) ~ nope.y",
    tojson_nested="{'a': nope} | tojson", int_of_missing="messages[0].nope | int", format_of="'{:d}'.format(nope)",
)  # fmt: skip

# --- methods ---------------------------------------------------------------------------------------------------------

prints(
    "string/strip", "s.strip()", "s.lstrip() | tojson", "s.rstrip() | tojson", "'xxaxx'.strip('x')",
    "'xyaxy'.lstrip('yx')", "'abcab'.rstrip('ab')", "'a'.strip('')", "'\\na\\n'.strip('\\n')", "'a.b.'.rstrip('.')",
    "none if 'a'.strip(none) else 1", s="  a b\t\n",
)  # fmt: skip
prints(
    "string/strip-unicode", "a.strip() | tojson", "b.strip() | tojson", "c.strip() | tojson", "a | trim | tojson",
    "d.strip() | tojson", "d.split() | tojson", a="\u00a0\u2003a\u3000", b="\u200bb\ufeff", c="\x1c\x1fc\x85",
    d="\x1da\x1eb\u2028c",
)  # fmt: skip
prints(
    "string/split", "'a b  c'.split()", "' a b '.split()", "'a,b,,c'.split(',')", "'a,b,c'.split(',', 1)",
    "'a b c'.split(none, 1)", "'a b c'.split(maxsplit=1)", "'abc'.split('x')", "''.split()", "''.split(',')",
    "'aXXbXXc'.split('XX')", "'a,b,c'.split(',', -1)", "'a,b'.split(sep=',')", "'a\\n\\nb'.split('\\n')",
    "'x</think>y</think>z'.split('</think>')[-1]", "'a b c'.split(' ', 0)",
)  # fmt: skip
prints(
    "string/rsplit", "'a,b,c'.rsplit(',', 1)", "'a b  c'.rsplit()", "'a b  c'.rsplit(none, 1)",
    "'a,b'.rsplit(',', maxsplit=0)", "' a  b c '.rsplit(maxsplit=1)",
)  # fmt: skip
prints(
    "string/splitlines", "a.splitlines()", "a.splitlines(true)", "b.splitlines()", "''.splitlines()",
    "'a\\n'.splitlines(keepends=true)", a="x\ny\r\nz\rw\n\n", b="a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i",
)  # fmt: skip
prints(
    "string/partition", "'a=b=c'.partition('=')", "'a=b=c'.rpartition('=')", "'abc'.partition('x')",
    "'abc'.rpartition('x')", "'a=b'.partition('=')[2]",
)  # fmt: skip
prints(
    "string/affixes", "'abc'.startswith('ab')", "'abc'.startswith(('x', 'a'))", "'abc'.endswith('c')",
    "'abc'.endswith(('x', 'bc'))", "'abc'.startswith('b', 1)", "'abc'.endswith('b', 0, 2)", "'abc'.startswith('')",
    "'abc'.removeprefix('ab')", "'abc'.removesuffix('bc')", "'abc'.removeprefix('x')", "'é'.startswith('é')",
    "'abc'.startswith(())",
)  # fmt: skip
prints(
    "string/replace", "'aaa'.replace('a', 'b')", "'aaa'.replace('a', 'b', 2)", "'aaa'.replace('', '-')",
    "'abc'.replace('b', '')", "'aaa'.replace('a', 'b', 0)", "'aaa'.replace('a', 'b', -1)",
    "'a\\nb'.replace('\\n', ' ')", "''.replace('', 'x')", "'aa'.replace('', '-', 2)",
)  # fmt: skip
prints(
    "string/find", "'hello'.find('l')", "'hello'.rfind('l')", "'hello'.find('x')", "'hello'.index('e')",
    "'hello'.rindex('l')", "'hello'.count('l')", "'hello'.find('l', 3)", "'hello'.count('l', 0, 3)",
    "'aaaa'.count('aa')", "'abc'.count('')", "'日本語'.find('語')", "'hello'.find('l', -2)", "'abc'.find('')",
)  # fmt: skip
prints(
    "string/case", "'hELLO wORLD'.upper()", "'hELLO'.lower()", "'hello world'.title()", "'hELLO wORLD'.capitalize()",
    "'aB'.swapcase()", "'ß'.upper()", "'ß'.casefold()", "'İ'.lower() | length", "'ΑΣ'.lower()", "'ǆ'.title()",
    "'ﬁn'.capitalize()", "\"they're o'neill\".title()", "'a1b c-d'.title()", "'éa'.capitalize()", "'ŉ'.upper()",
)  # fmt: skip
prints(
    "string/predicates", "'12'.isdigit()", "'1.2'.isdigit()", "''.isdigit()", "'²'.isdigit()", "'½'.isnumeric()",
    "'²'.isdecimal()", "'ab'.isalpha()", "'a1'.isalnum()", "' \\t'.isspace()", "''.isspace()", "'AB'.isupper()",
    "'ab1'.islower()", "'1'.isupper()", "'Ab Cd'.istitle()", "'a_1'.isidentifier()", "'é'.isascii()",
    "'a\\n'.isprintable()", "'日'.isalpha()", "'٣'.isdigit()",
)  # fmt: skip
prints(
    "string/padding", "'7'.zfill(3)", "'-7'.zfill(4)", "'abc'.zfill(2)", "'a'.center(5) | tojson", "'a'.center(4, '*')",
    "'ab'.ljust(4, '.')", "'ab'.rjust(4, '.')", "'a\\tb'.expandtabs(4)", "'ab'.center(5, '-')", "'+1'.zfill(4)",
    "'日'.ljust(3, '.')",
)  # fmt: skip
prints(
    "string/join", "','.join(['a', 'b'])", "''.join('abc')", "'-'.join({'a': 1, 'b': 2})", "','.join([])",
    "', '.join(messages | map(attribute='role'))", "','.join(('x',))",
)  # fmt: skip
prints(
    "string/format", "'{} {}'.format('a', 1)", "'{1} {0} {1}'.format('a', 'b')", "'{a}-{b}'.format(a=1, b='x')",
    "'{0[k]}{0.k}'.format({'k': 5})", "'{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c')",
    "'{:05d} {:+d} {:x} {:X} {:b} {:o}'.format(42, 42, 255, 255, 5, 8)",
    "'{:.2f} {:e} {:g} {:%}'.format(3.14159, 12345.678, 0.0001, 0.5)", "'{:,} {:_}'.format(1234567, 1234567)",
    "'{{}} {!r} {!s}'.format('a', 'b')", "'{:*^9}'.format('mid')", "'{}'.format(none)",
    "'{} {}'.format([1, 'a'], {'b': 1.0})", "'{:10.3f}|'.format(2.5)", "'{:d}'.format(true)", "'{}'.format(nope)",
    "'{a}'.format_map({'a': 1})", "'{:>{}}'.format('a', 4)", "'{:s}'.format('x')", "'{:.3}'.format('abcdef')",
    "'{:#x} {:#b}'.format(255, 5)", "'{: d}'.format(3)", "'{:c}'.format(65)", "'{}'.format(1e16)",
)  # fmt: skip
prints(
    "string/percent", "'%s %r' % ('a', 'b')", "'%d' % 3.7", "'%i' % 3", "'%5d|%-5d|%05d' % (42, 42, 42)",
    "'%.2f' % 3.14159", "'%x %X %o' % (255, 255, 8)", "'%e' % 12345.678", "'%g %g' % (0.0001, 1e10)",
    "'%(a)s %(b)d' % {'a': 1, 'b': 2}", "'%%' % ()", "'%c' % 65", "'%5s|%-5s|' % ('a', 'b')", "'%+d' % 3",
    "'%s' % none", "'%s' % {'a': 1}", "'%.2s' % 'abc'", "'%s' % ((1, 2),)", "'%*d' % (5, 42)", "'%s' % true",
    "'%#x' % 255", "'% d' % 3",
)  # fmt: skip
prints(
    "string/percent-numbers", "'%x %X %o %#x %#X' % (-255, -255, -8, -255, 255)",
    "'%#010x|%.5d|%08.3d|%#.5x' % (-255, -42, 5, 42)", "'%-+5d|%+-5d|%- 5d|% 05d|%+05d' % (5, 5, 5, 5, 5)",
    "'%-05d|%05s|%05c|%*d|%.*f' % (5, 1, 'x', -5, 42, -1, 1.5)",
    "'%.3g %.3g %g %g %.0g' % (1234.5, 0.00001234, 1e5, 1e6, 1.5)",
    "'%#.3g %#.1g %g %E %G' % (1.0, 5, -0.0, 1234.5, 1e-10)", "'%d %.0f %#.0f %#.0e %ld' % (1e20, 2.5, 2.5, 2.5, 5)",
    "'%.60f' % 0.1",
)  # fmt: skip
prints(
    "string/format-numbers", "'{:.3g} {:.3} {:.3} {:.4}'.format(1234.5, 1.23456, 100.0, 100.0)",
    "'{:.1} {:.20} {:.2} {:#.3}'.format(0.0, 0.1, 12.0, 1.0)",
    "'{:b} {:#b} {:#x} {:#X} {:#o}'.format(-5, -5, -255, 255, 8)",
    "'{:=5d} {:*=6d} {:<05d} {:*<05d} {:^05d}'.format(-5, -5, 1, 1, 1)",
    "'{:05} {:>05} {:^7}|'.format('a', 'a', 'abc')",
    "'{:08,} {:010,} {:010,.2f} {:05,}'.format(1234, -1234, 1234.5, 12)",
    "'{:_x} {:_b} {:,g}'.format(2882400018, 1023, 12345.0)",
    "'{:n} {:5} {:d} {:5c}| {:G}'.format(1e10, true, true, 65, 1e-10)",
)  # fmt: skip
prints(
    "string/other", "'a'.encode()", "'é'.encode('utf-8')", "'abc'.index('c')", "'a-b'.translate({45: 95})",
    "'ab'.encode().decode()", "'é'.encode() | length",
)  # fmt: skip
prints(
    "string/chained", "' a,B '.strip().lower().split(',')[0]", "messages[0]['content'].upper()[:3][::-1]",
    "'x=1;y=2'.split(';')[1].split('=')[1] | int + 1", "(('a' ~ 'b').upper() ~ 'c').title()",
)  # fmt: skip
fails(
    "string-error", index="'abc'.index('x')", rindex="'abc'.rindex('x')", join_ints="','.join([1, 2])",
    split_empty="'a'.split('')", zfill_type="'a'.zfill('b')", format_index="'{} {}'.format(1)",
    format_key="'{a}'.format(b=1)", format_code="'{:d}'.format('a')", startswith_list="'a'.startswith(['a'])",
    too_many="'a'.upper(1)", format_private="'{0.__class__}'.format('a').x.y", format_unmatched="'{'.format(1)",
    percent_key="'%(a)s' % {'b': 1}", percent_list="'%s %s' % [1, 2]", percent_code="'%y' % 1",
    percent_hex_float="'%x' % 1.5", percent_char="'%c' % 'ab'", format_places="'{:.2d}'.format(1)",
    format_none="'{:5}'.format(none)", format_list="'{:>5}'.format([1])", format_group="'{:,x}'.format(255)",
    format_text_align="'{:=5}'.format('a')", format_int_as_text="'{:s}'.format(1)", slice_of_bool="'x'.istitle()[1:]",
    replace_one="'a'.replace('b')", removeprefix_none="'a'.removeprefix(none)",
)  # fmt: skip
prints(
    "dict/methods", "d.items() | list", "d.keys() | list", "d.values() | list", "d.get('a')", "d.get('x')",
    "d.get('x', 5)", "d.get('x', default) is defined", "d.copy()", "d | length", "d.get('a', nope)",
    "d.items() | first", "d.keys() | join", "dict(d, c=3)", "dict(d, **{'c': 3})", "dict.fromkeys(['a', 'b'], 1)",
    "dict.fromkeys('ab')", "d.__len__ is defined", d={"a": 1, "b": [2]},
)  # fmt: skip
prints(
    "list/methods", "[1, 2, 1].count(1)", "[1, 2].index(2)", "[1, 2].copy()", "(1, 2, 1).count(1)",
    "[1, 2, 1].index(1, 1)", "range(5).index(3)", "range(5).start", "range(9).stop",
)  # fmt: skip
snippet(
    "list/append-by-adding",
    "{% set ns = namespace(l=[]) %}{% for x in 'ab' %}{% set ns.l = ns.l + [x] %}{% endfor %}{{ ns.l }}",
)  # fmt: skip
each(
    "immutable",
    append="{% set x = [] %}{% set _ = x.append(1) %}{{ x }}",
    append_printed="{% set x = [] %}{{ x.append(1) }}",
    extend="{% set x = [] %}{% if x.extend([1]) %}{% endif %}{{ x }}",
    pop="{{ messages.pop() }}",
    pop_zero="{% set m = messages.pop(0) %}{{ m }}",
    insert="{{ messages.insert(0, 1) }}",
    remove="{{ [1].remove(1) }}",
    reverse="{{ [1].reverse() }}",
    sort="{{ [2, 1].sort() }}",
    clear="{{ {}.clear() }}",
    update="{% set _ = messages[0].update({'role': 'x'}) %}{{ messages[0] }}",
    update_item="{% set _ = messages[0]['update']({'role': 'x'}) %}{{ messages[0] }}",
    setdefault="{{ messages[0].setdefault('a', 1) }}",
    dict_pop="{{ messages[0].pop('role') }}",
    popitem="{{ messages[0].popitem() }}",
    mentioned="[{{ [].append }}]{{ [].append is defined }}{{ {}.update is defined }}{{ [].append is callable }}",
    set_item="{% set messages[0]['role'] = 'x' %}",
    set_attribute="{% set messages.x = 'x' %}",
    set_dict_attribute="{% set d = {} %}{% set d.x = 1 %}{{ d }}",
    setitem_method="{{ messages[0].__setitem__('a', 1) }}",
    do="{% do messages.append(1) %}",
    key_named_pop="{{ {'pop': 1, 'update': 2}['pop'] }}{{ {'pop': 1}.pop is defined }}",
)

# --- statements ------------------------------------------------------------------------------------------------------

each(
    "for",
    attributes="{% for x in 'abc' %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}|{% endfor %}",
    neighbours="{% for x in [1, 2, 3] %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {{ loop.previtem is defined }}{{ loop.nextitem is defined }}|{% endfor %}",
    neighbours_attribute="{% for m in [{'r': 1}, {'r': 2}] %}{{ loop.previtem.r if loop.previtem else '-' }}{{ loop.nextitem.r if not loop.last else '-' }}{% endfor %}",
    neighbour_error="{% for m in [{'r': 1}] %}{{ loop.nextitem.r }}{% endfor %}",
    cycle="{% for x in range(5) %}{{ loop.cycle('a', 'b', 'c') }}{% endfor %}",
    cycle_empty="{% for x in [1] %}{{ loop.cycle() }}{% endfor %}",
    changed="{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }}{{ loop.changed(x, 1) }} {% endfor %}",
    changed_alone="{% for x in [1, 1, 2, none, none] %}{% if loop.changed(x) %}{{ x }}{% endif %}{% endfor %}",
    filtered="{% for x in [1, 2, 3, 4] if x is even %}{{ x }}{{ loop.index }}{{ loop.length }}{{ loop.last }}|{% endfor %}",
    filtered_none="{% for x in [1, 3] if x is even %}{{ x }}{% else %}none{% endfor %}",
    filter_outer_loop="{% for y in [1, 2] %}{% for x in [1, 2, 3] if x > loop.index %}{{ x }}{% endfor %};{% endfor %}",
    filter_own_loop="{% for x in [1, 2] if loop.index %}{{ x }}{% endfor %}",
    else_empty="{% for x in [] %}a{% else %}b{% endfor %}{% for x in [1] %}a{% else %}b{% endfor %}",
    else_break="{% for x in [1] %}{% break %}{% else %}b{% endfor %}.",
    else_continue="{% for x in [1] %}{% continue %}{% else %}b{% endfor %}.",
    break_="{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}.",
    continue_="{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{{ loop.index }}{% endfor %}",
    break_inner="{% for y in 'ab' %}{% for x in [1, 2] %}{{ y }}{{ x }}{% break %}{% endfor %}{% endfor %}",
    break_outside="{% break %}",
    dict_keys="{% for k in {'a': 1, 'b': 2} %}{{ k }}{% endfor %}",
    dict_items="{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }}{{ ',' if not loop.last }}{% endfor %}",
    items_filter="{% for k, v in {'a': 1, 'b': 2} | items %}{{ k }}={{ v }}{{ ',' if not loop.last }}{% endfor %}",
    unpack="{% for a, b in [[1, 2], (3, 4), 'xy'] %}{{ a }}{{ b }} {% endfor %}",
    unpack_nested="{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    unpack_parentheses="{% for (a, b) in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}",
    unpack_few="{% for a, b in [[1]] %}{% endfor %}",
    unpack_many="{% for a, b in [[1, 2, 3]] %}{% endfor %}",
    unpack_number="{% for a, b in [1] %}{% endfor %}",
    string="{% for c in 'aé🙂' %}{{ c }},{% endfor %}",
    range_="{% for i in range(3) %}{{ i }}{% endfor %}{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}{% for i in range(2, 4) %}{{ i }}{% endfor %}",
    tuple_without_parentheses="{% for x in 1, 2, 3 %}{{ x }}{% endfor %}",
    number="{% for x in 5 %}{% endfor %}",
    none="{% for x in none %}{% endfor %}",
    generator="{% for x in [3, 1] | map('string') %}{{ x }}{{ loop.last }}{{ loop.index }}{% endfor %}",
    generator_length="{% for x in [3, 1] | map('string') %}{{ loop.length }}{{ loop.revindex }}{% endfor %}",
    recursive="{% for x in [[1, [2]], [3]] recursive %}[{{ loop.depth }}{{ loop(x) if x is iterable else x }}]{% endfor %}",
    recursive_block="{% for n in [{'n': 1, 'c': [{'n': 2, 'c': []}]}] recursive %}\n{{ n.n }}/{{ loop.depth0 }}\n{{- loop(n.c) }}\n{% endfor %}",
    recursive_missing="{% for x in [1] %}{{ loop([1]) }}{% endfor %}",
    nested="{% for a in [1, 2] %}{% set outer = loop %}{% for b in 'xy' %}{{ outer.index }}{{ loop.index }}{{ a }}{{ b }} {% endfor %}{{ loop.index }}|{% endfor %}",
    loop_after="{% for a in [1] %}{% endfor %}{{ loop is defined }}{{ a is defined }}",
    loop_variable_shadow="{% set x = 'o' %}{% for x in [1, 2] %}{{ x }}{% endfor %}{{ x }}",
    loop_assigned="{% for x in [1] %}{% set loop = 5 %}{{ loop }}{% endfor %}",
    target_loop="{% for loop in [1] %}{{ loop }}{% endfor %}",
    over_itself="{% set x = [1, 2] %}{% for x in x %}{{ x }}{% endfor %}{{ x }}",
    messages_shadow="{% for messages in messages %}{{ messages.role }}{% endfor %}{{ messages | length }}",
    messages_reversed="{% for m in messages[::-1] %}{{ m.role }}{{ messages | length - 1 - loop.index0 }}{% endfor %}",
    sibling_loops="{% for x in [1] %}{% set y = 1 %}{% endfor %}{% for x in [1] %}{{ y is defined }}{% endfor %}",
    conditional_iterable="{% for x in [1] if true else [2] %}{{ x }}{% endfor %}",
    conditional_iterable_parentheses="{% for x in ([1] if false else [2]) %}{{ x }}{% endfor %}",
    star="{% for x in [*[1]] %}{{ x }}{% endfor %}",
)
each(
    "if",
    chain="{% for x in range(4) %}{% if x == 0 %}a{% elif x == 1 %}b{% elif x == 2 %}c{% else %}d{% endif %}{% endfor %}",
    truth="{% for x in [0, 1, '', 'a', [], [0], {}, {'a': 1}, none, 0.0, 0.1, (), (0,), false, true, '0', ' '] %}{{ 1 if x else 0 }}{% endfor %}",
    empty_range="{% if range(0) %}a{% else %}b{% endif %}",
    namespace_truth="{% if namespace() %}a{% endif %}",
    else_if="{% if false %}a{% else if true %}b{% endif %}",
    no_end="{% if true %}a",
    stray_end="a{% endif %}",
    wrong_end="{% if true %}a{% endfor %}",
    unknown_tag="{% frobnicate %}",
    assignment_leaks="{% if true %}{% set x = 1 %}{% endif %}{{ x }}{% if false %}{% set y = 1 %}{% endif %}{{ y is defined }}",
    tuple_condition="{% if 0, %}a{% endif %}",
)
each(
    "set",
    tuple="{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d) = [3, 4] %}{{ c }}{{ d }}{% set e = 1, 2 %}{{ e }}",
    swap="{% set a, b = 1, 2 %}{% set a, b = b, a %}{{ a }}{{ b }}",
    unpack_error="{% set a, b = [1] %}",
    in_for="{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    in_for_undefined_before="{% for i in [1, 2] %}{{ x is defined }}{% set x = i %}{{ x }}{% endfor %}{{ x is defined }}",
    in_if_in_for="{% set x = 0 %}{% for i in [1, 2, 3] %}{% if i == 2 %}{% set x = i %}{% endif %}{{ x }}{% endfor %}{{ x }}",
    block="{% set x %}a{{ 1 }}b{% endset %}{{ x }}{{ x is string }}{{ x | length }}",
    block_filter="{% set x | upper | trim %} abc {% endset %}[{{ x }}]",
    block_filter_arguments="{% set x | replace('a', 'b') %}aaa{% endset %}{{ x }}",
    block_in_loop="{% for i in [1, 2] %}{% set x %}{{ i * 2 }}{% endset %}{{ x }}{% endfor %}",
    block_inner_set="{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y is defined }}",
    namespace="{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns['a'] }}{{ ns.b is defined }}",
    namespace_new="{% set ns = namespace() %}{% set ns.x = [1] %}{% set ns.y = ns.x + [2] %}{{ ns.y }}",
    namespace_block="{% set ns = namespace() %}{% set ns.x %}text{% endset %}{{ ns.x }}",
    namespace_tuple="{% set ns = namespace() %}{% set ns.a, ns.b = 1, 2 %}{{ ns.a }}{{ ns.b }}",
    namespace_undefined="{% set ns = namespace() %}{{ ns.x }}{{ ns.x.y }}",
    namespace_private="{% set ns = namespace(_a=1) %}",
    namespace_private_set="{% set ns = namespace() %}{% set ns._a = 1 %}",
    namespace_private_dict="{{ namespace({'_a': 1}) }}",
    namespace_method_names="{% set ns = namespace(items=1, get=2) %}{{ ns.items }}{{ ns.get }}{{ ns['items'] }}",
    namespace_in="{{ 'a' in namespace(a=1) }}",
    namespace_iterate="{% for x in namespace(a=1) %}{% endfor %}",
    namespace_not_defined="{% set ns.x = 1 %}",
    namespace_nested="{% set ns = namespace(inner=namespace(v=1)) %}{{ ns.inner.v }}{% set i = ns.inner %}{% set i.v = 2 %}{{ ns.inner.v }}",
    namespace_nested_direct="{% set ns = namespace(inner=namespace(v=1)) %}{% set ns.inner.v = 2 %}",
    namespace_alias="{% set a = namespace(v=1) %}{% set b = a %}{% set b.v = 2 %}{{ a.v }}{{ a == b }}",
    namespace_equality="{{ namespace(a=1) == namespace(a=1) }}{{ namespace() is mapping }}{{ namespace() is iterable }}{{ namespace is callable }}",
    namespace_positional_error="{{ namespace(1) }}",
    over_variable="{% set messages = messages + messages %}{{ messages | length }}",
    over_itself_conditional="{% set tools = tools if tools else [] %}{{ tools }}{% set add_generation_prompt = true %}{{ add_generation_prompt }}",
    over_global="{% set range = 1 %}{{ range }}{% set namespace = 2 %}{{ namespace }}",
    self_undefined="{% set x = x | default(3) %}{{ x }}{% set x = x + 1 %}{{ x }}",
    conditional="{% set x = 'a' if false %}{{ x is defined }}[{{ x }}]",
    no_value="{% set x = %}",
    literal_target="{% set 1 = 2 %}",
    chained="{% set a = b = 1 %}",
    read_before_loop="{% for i in [1, 2] %}{% if x is defined %}{{ x }}{% endif %}{% set x = i %}{% endfor %}",
    none_then_loop="{% set found = none %}{% for i in [1, 2] %}{% set found = i %}{% endfor %}{{ found }}",
    with_="{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set c = 3 %}{{ c }}{% endwith %}{{ a is defined }}{{ c is defined }}",
    with_shadow="{% set a = 1 %}{% with a = a + 1, b = a %}{{ a }}{{ b }}{% set a = 9 %}{{ a }}{% endwith %}{{ a }}",
    with_empty="{% with %}{% set a = 1 %}{{ a }}{% endwith %}{{ a is defined }}",
)
each(
    "macro",
    defaults="{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}|{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c='y') }}{{ m(a=5, b=6) }}{{ m(c=1, a=2) }}",
    default_from_argument="{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 2) }}",
    default_mutable="{% macro m(a=[]) %}{{ a + [1] }}{% endmacro %}{{ m() }}{{ m() }}",
    missing="{% macro m(a) %}[{{ a }}]{{ a is defined }}{% endmacro %}{{ m() }}",
    missing_used="{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m() }}",
    too_many="{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
    unknown_keyword="{% macro m(a) %}{% endmacro %}{{ m(b=1) }}",
    twice="{% macro m(a) %}{% endmacro %}{{ m(1, a=2) }}",
    varargs="{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}{{ m(1) }}",
    varargs_only="{% macro m() %}{{ varargs | join('-') }}{% endmacro %}{{ m('a', 'b') }}",
    star_arguments="{% macro m(a, b, c=0) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(*[1, 2]) }}{{ m(**{'a': 3, 'b': 4}) }}{{ m(1, *[2], **{'c': 5}) }}",
    recursive="{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    mutual="{% macro a(n) %}a{{ b(n - 1) if n }}{% endmacro %}{% macro b(n) %}b{{ a(n - 1) if n }}{% endmacro %}{{ a(4) }}",
    result_is_string="{% macro m() %}5{% endmacro %}{{ m() is string }}{{ m() + '1' }}{{ m() | int + 1 }}{{ m() | length }}",
    result_trimmed="{% macro m() %}\n  5\n{% endmacro %}{{ m() | trim }}{{ m() == '5' }}",
    sees_globals="{% set x = 1 %}{% macro m() %}{{ x }}{{ messages | length }}{% endmacro %}{% set x = 2 %}{{ m() }}",
    sees_later_global="{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}",
    sees_later_global_twice="{% macro m() %}{{ x is defined }}{% endmacro %}{{ m() }}{% set x = 1 %}{{ m() }}",
    sees_loop_variable="{% for i in [1, 2] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}",
    not_loop_of_caller="{% macro m() %}{{ i is defined }}{{ loop is defined }}{% endmacro %}{% for i in [1] %}{{ m() }}{% endfor %}",
    loop_in_closure="{% for i in [1, 2] %}{% macro m() %}{{ loop.index }}{% endmacro %}{{ m() }}{% endfor %}",
    set_is_local="{% set x = 1 %}{% macro m() %}{% set x = 2 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}",
    set_conditional="{% macro m() %}{% if x is not defined %}{% set x = 'd' %}{% endif %}{{ x }}{% endmacro %}{{ m() }}{% set x = 1 %}{{ m() }}",
    set_conditional_kwarg="{% macro m() %}{% if identity is not defined %}{% set identity = 'd' %}{% endif %}{{ identity }}{% endmacro %}{{ m() }}",
    set_in_if_global="{% if true %}{% set x = 1 %}{% endif %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}",
    namespace_from_outside="{% set ns = namespace(n=0) %}{% macro m() %}{% set ns.n = ns.n + 1 %}{% endmacro %}{{ m() }}{{ m() }}{{ ns.n }}",
    defined_in_if="{% if true %}{% macro m() %}a{% endmacro %}{% endif %}{{ m() }}",
    defined_in_if_not="{% if false %}{% macro m() %}a{% endmacro %}{% endif %}{{ m is defined }}",
    before_definition="{{ m is defined }}{% macro m() %}a{% endmacro %}{{ m() }}",
    called_before_definition="{{ m() }}{% macro m() %}a{% endmacro %}",
    shadows_variable="{% macro messages() %}a{% endmacro %}{{ messages() }}",
    parameter_shadows="{% set a = 1 %}{% macro m(a) %}{{ a }}{% endmacro %}{{ m(2) }}{{ m() }}{{ a }}",
    private="{% macro _m() %}a{% endmacro %}{{ _m() }}",
    as_value="{% macro m(a) %}<{{ a }}>{% endmacro %}{% set f = m %}{{ f(1) }}{{ [m][0](2) }}{{ m is callable }}",
    passed="{% macro m(a) %}<{{ a }}>{% endmacro %}{% macro twice(f, x) %}{{ f(f(x)) }}{% endmacro %}{{ twice(m, 1) }}",
    nested="{% macro outer(a) %}{% macro inner(b) %}{{ a }}{{ b }}{% endmacro %}{{ inner(1) }}{{ inner(2) }}{% endmacro %}{{ outer('x') }}",
    call="{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}body{% endcall %}",
    call_arguments="{% macro m(x) %}{% for i in x %}<{{ caller(i, loop.index) }}>{% endfor %}{% endmacro %}{% call(v, n) m('ab') %}{{ v }}{{ n }}{% endcall %}",
    call_default="{% macro m() %}{{ caller() }}{{ caller('z') }}{% endmacro %}{% call(a='d') m() %}{{ a }}{% endcall %}",
    call_scope="{% set x = 1 %}{% macro m() %}{% set x = 2 %}{{ caller() }}{% endmacro %}{% call m() %}{{ x }}{% set y = 3 %}{% endcall %}{{ y is defined }}",
    call_without_caller="{% macro m() %}a{% endmacro %}{% call m() %}b{% endcall %}",
    caller_missing="{% macro m() %}{{ caller is defined }}{{ caller() }}{% endmacro %}{{ m() }}",
    caller_nested="{% macro a() %}a{{ caller() }}{% endmacro %}{% macro b() %}{% call a() %}b{{ caller() }}{% endcall %}{% endmacro %}{% call b() %}c{% endcall %}",
    call_in_loop="{% macro m() %}{{ caller() }}{% endmacro %}{% for i in [1, 2] %}{% call m() %}{{ i }}{{ loop.index }}{% endcall %}{% endfor %}",
    filter_on_call="{% macro m(a) %} {{ a }} {% endmacro %}[{{ m('x') | trim | upper }}]",
    break_in_macro="{% for i in [1] %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}",
    no_arguments_list="{% macro m %}a{% endmacro %}{{ m() }}",
    non_default_after_default="{% macro m(a=1, b) %}{% endmacro %}",
    endless="{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
)
snippet(
    "macro/set-conditional-given",
    "{% macro m() %}{% if x is not defined %}{% set x = 'd' %}{% endif %}{{ x }}{% endmacro %}{{ m() }}", x="given",
)  # fmt: skip
each(
    "block",
    filter_="{% filter upper %}a{{ 'b' }}c{% endfilter %}",
    filter_chain="{% filter trim | replace('a', 'b') | upper %} aaa {% endfilter %}",
    filter_scope="{% filter upper %}{% set x = 'a' %}{{ x }}{% endfilter %}{{ x is defined }}",
    filter_indent="{% filter indent(2, true) %}a\nb{% endfilter %}",
    named="{% block a %}x{{ 1 }}{% endblock %}{{ self.a() }}{% block b %}{{ messages | length }}{% endblock b %}",
    named_scope="{% for i in [1, 2] %}{% block a %}{{ i is defined }}{% endblock %}{% endfor %}",
    named_scoped="{% for i in [1, 2] %}{% block a scoped %}{{ i }}{% endblock %}{% endfor %}",
    named_sees_set="{% set x = 1 %}{% block a %}{{ x }}{% set x = 2 %}{% endblock %}{{ x }}",
    named_twice="{% block a %}{% endblock %}{% block a %}{% endblock %}",
    autoescape="{% autoescape true %}{{ '<' }}{{ '<' | safe }}{% endautoescape %}{{ '<' }}",
    extends="{% extends 'a' %}",
    include="{% include 'a' %}",
    include_ignore="{% include 'a' ignore missing %}",
    import_="{% import 'a' as b %}",
    from_="{% from 'a' import b %}",
    trans="{% trans %}a{% endtrans %}",
    debug="{% debug %}",
    generation="{% generation %}a{{ 1 }}{% endgeneration %}b",
    generation_scope="{% set x = 1 %}{% generation %}{{ x }}{% set x = 2 %}{{ x }}{% set y = 3 %}{% endgeneration %}{{ x }}{{ y is defined }}",
    generation_in_loop="{% for m in messages %}{% generation %}{{ m.role }}{{ loop.last }}{% endgeneration %}{% endfor %}",
    generation_nested="{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}",
    generation_namespace="{% set ns = namespace(n=1) %}{% generation %}{% set ns.n = 2 %}{% endgeneration %}{{ ns.n }}",
    generation_macro="{% macro m(a) %}{% generation %}{{ a }}{% endgeneration %}{% endmacro %}{{ m('x') }}",
    generation_unclosed="{% generation %}a",
    generation_break="{% for x in [1, 2] %}{{ x }}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    generation_caller="{% macro m() %}{% generation %}{{ caller() }}{% endgeneration %}{% endmacro %}{% call m() %}x{% endcall %}",
    generation_empty="[{% generation %}{% endgeneration %}]",
)

# --- filters ---------------------------------------------------------------------------------------------------------

prints(
    "filter/trim", "' a ' | trim | tojson", "'xax' | trim('x')", "'\\n a\\n' | trim | tojson", "5 | trim",
    "none | trim", "[1] | trim", "'ab' | trim(chars='b')", "' a ' | trim | length",
)  # fmt: skip
prints(
    "filter/length", "'abc' | length", "[1, 2] | count", "{'a': 1} | length", "'🙂' | length", "(1, 2) | length",
    "range(4) | length", "{}.items() | length", "'' | length == 0",
)  # fmt: skip
prints(
    "filter/case", "'aBc' | upper", "'aBc' | lower", "'hello world-foo' | title", "\"they're (here)\" | title",
    "'hELLO wORLD' | capitalize", "5 | upper", "none | lower", "true | upper", "'ßa' | capitalize",
    "'a b\\tc\\nd_e' | title", "'x<y[z{w' | title", "[1, 'a'] | upper",
)  # fmt: skip
prints(
    "filter/replace", "'aaa' | replace('a', 'b')", "'aaa' | replace('a', 'b', 2)", "'abc' | replace('b', '')",
    "'abc' | replace('', '-')", "5 | replace('5', '6')", "'a1' | replace(1, 2)", "none | replace('None', 'x')",
    "'aaa' | replace('a', 'b', count=1)", "'a.b' | replace('.', '\\n') | tojson",
)  # fmt: skip
prints(
    "filter/string", "5 | string", "1.0 | string", "none | string", "[1, 'a'] | string", "{'a': none} | string",
    "true | string + 'x'", "'a' | string", "(1,) | string | length",
)  # fmt: skip
prints(
    "filter/int", "'42' | int", "' 42 ' | int", "'4.7' | int", "4.7 | int", "-4.7 | int", "'x' | int", "'x' | int(5)",
    "'0x1f' | int(base=16)", "'1f' | int(0, 16)", "'101' | int(base=2)", "true | int", "none | int", "'1e3' | int",
    "'' | int", "[] | int", "'1_000' | int", "'x' | int(default=none)", "'٣' | int", "'-7' | int",
    "'9223372036854775808' | int", "'0b11' | int(0, 2)", "'0o17' | int(base=8)", "'inf' | int",
)  # fmt: skip
prints(
    "filter/float", "'4.5' | float", "4 | float", "'x' | float", "'x' | float(1.5)", "'1e3' | float", "none | float",
    "true | float", "'' | float", "' 2 ' | float", "'inf' | float", "'nan' | float", "'1_0' | float", "'-.5' | float",
    "'x' | float(none)",
)  # fmt: skip
prints(
    "filter/round", "2.5 | round", "3.5 | round", "-2.5 | round", "2.567 | round(2)", "2.567 | round(1, 'floor')",
    "2.521 | round(1, 'ceil')", "1234 | round(-2)", "42 | round", "2.5 | round | int", "0.15 | round(1)",
    "2.675 | round(2)", "7 | round(method='floor')", "1e20 | round", "-0.4 | round", "true | round",
)  # fmt: skip
prints(
    "filter/round-whole", "7 | round(1, 'common')", "7 | round(0, 'ceil')", "25 | round(-1)", "-25 | round(-1)",
    "-26 | round(-1)", "12345678901234567890 | round(-2)", "7 | round(-400)",
)  # fmt: skip
prints(
    "operator/float-rest", "1.0 // 0.1", "1.0 % 0.1", "4.0 % -2.0", "-5 % 3.5", "-7.5 // 2", "-0.5 // 1",
    "1e3 is divisibleby(3)", "9 is divisibleby 4.5", "9 is divisibleby(num=3)", "'%s' is divisibleby 3",
)  # fmt: skip
prints(
    "undefined/keys", "['b', 'a'] | unique(attribute='n') | list", "[nope, nada] | unique | list", "{nope: 1}[nada]",
    "nope in {'a': 1}", "{'a': 1}.get(nope)", "[1, 2] | sort(attribute='x')", "[none, none] | sort", "[{}, {}] | sort",
    "'' is test", "'is_none' is test",
)  # fmt: skip
fails("undefined-error", dict_and_names="dict(nope, q=1)", namespace_of="namespace(nope)", dict_of_two="dict({}, {})")
prints("filter/abs", "-5 | abs", "5.5 | abs", "-0.0 | abs", "true | abs", "(1 - 3) | abs")
prints(
    "filter/default", "nope | default(1)", "none | default(1)", "none | default(1, true)", "'' | default('x', true)",
    "false | default('x', boolean=true)", "0 | d(2)", "nope | d", "nope | default(default_value=3)",
    "messages[0].x | default(messages[0].role)",
)  # fmt: skip
prints(
    "filter/join", "[1, 2] | join(', ')", "['a', 'b'] | join", "'abc' | join('-')",
    "[{'a': 1}, {'a': 2}] | join(',', attribute='a')", "{'a': 1, 'b': 2} | join(',')", "[] | join(',')",
    "[none, true, 1.5, 'x'] | join('|')", "[[1], {'a': 'b'}] | join(' ')", "messages | join(', ', 'role')",
    "[1, 2] | join(d='+')", "range(3) | join(0)", "[nope, 1] | join('-')", "[{'a': {'b': 1}}] | join('', 'a.b')",
)  # fmt: skip
prints(
    "filter/first-last", "[1, 2] | first", "[1, 2] | last", "'abc' | first", "'abc' | last", "{'a': 1, 'b': 2} | first",
    "{'a': 1, 'b': 2} | last", "[] | first is defined", "'' | last is defined", "range(3) | last",
    "[1, 2] | map('string') | first", "[] | first | default('none')", "(1, 2) | last", "{'a': 1}.items() | first",
)  # fmt: skip
prints(
    "filter/list", "'abc' | list", "{'a': 1} | list", "(1, 2) | list", "range(3) | list",
    "[1, 2] | map('string') | list", "[] | list", "{'a': 1}.values() | list",
)  # fmt: skip
prints(
    "filter/reverse", "[1, 2, 3] | reverse | list", "'abc' | reverse", "(1, 2) | reverse | list",
    "{'a': 1, 'b': 2} | reverse | list", "range(3) | reverse | join", "'🙂é' | reverse",
    "[1, 2] | map('string') | reverse | list",
)  # fmt: skip
prints(
    "filter/sort", "[3, 1, 2] | sort", "[3, 1, 2] | sort(reverse=true)", "['b', 'A', 'a', 'B'] | sort",
    "['b', 'A', 'a', 'B'] | sort(case_sensitive=true)",
    "[{'a': 2, 'b': 1}, {'a': 1, 'b': 2}] | sort(attribute='a') | map(attribute='b') | list", "[[2, 1], [1, 2]] | sort",
    "'cab' | sort", "{'b': 1, 'a': 2} | sort",
    "[{'a': 1, 'b': 2}, {'a': 1, 'b': 1}] | sort(attribute='a,b') | map(attribute='b') | list",
    "[(2, 'x'), (1, 'y')] | sort(attribute=0)", "[true, false, 2, 0.5] | sort",
    "messages | sort(attribute='role') | length", "['é', 'z', 'a'] | sort", "[] | sort", "[3, 1] | sort(true)",
    "[{'n': 'b'}, {'n': 'A'}] | sort(false, true, 'n')", "['b', 1] | map('string') | sort",
)  # fmt: skip
prints(
    "filter/dictsort", "{'b': 1, 'A': 3, 'a': 2} | dictsort", "{'b': 1, 'a': 2} | dictsort(by='value')",
    "{'b': 1, 'a': 2} | dictsort(reverse=true)", "{'b': 1, 'A': 3, 'a': 2} | dictsort(case_sensitive=true)",
    "{2: 'a', 1: 'b'} | dictsort", "{} | dictsort", "{'a': 'B', 'b': 'a'} | dictsort(false, 'value')",
)  # fmt: skip
prints(
    "filter/unique", "[1, 2, 1] | unique | list", "['a', 'A', 'b'] | unique | list", "['a', 'A'] | unique(true) | list",
    "[{'a': 1, 'b': 1}, {'a': 1, 'b': 2}] | unique(attribute='a') | list", "'abca' | unique | join",
    "[1, 1.0, true] | unique | list",
)  # fmt: skip
prints(
    "filter/groupby", "l | groupby('r') | map('first') | list", "(l | groupby('r') | first).grouper",
    "(l | groupby('r') | first).list", "l | groupby('r')",
    "l | groupby('x', default='none') | map(attribute='grouper') | list", "['a', 'B', 'A'] | map('upper') | list",
    "[{'k': 'b'}, {'k': 'B'}, {'k': 'a'}] | groupby('k') | length",
    "[{'k': 'b'}, {'k': 'B'}] | groupby('k', case_sensitive=true) | length",
    l=[{"r": "u", "c": 1}, {"r": "a", "c": 2, "x": "y"}, {"r": "u", "c": 3}],
)  # fmt: skip
prints(
    "filter/batch-slice", "[1, 2, 3] | batch(2) | list", "[1, 2, 3] | batch(2, 0) | list",
    "[1, 2, 3, 4, 5] | slice(2) | list", "[1, 2, 3] | slice(2, 'x') | list", "[] | batch(2) | list",
    "'abc' | batch(2) | map('join') | list", "[1] | slice(3) | list",
)  # fmt: skip
prints(
    "filter/numbers", "[1, 2, 3] | sum", "[] | sum", "[1.5, 2] | sum", "[[1], [2]] | sum(start=[])",
    "[{'a': 1}, {'a': 2}] | sum(attribute='a')", "[{'a': 1}] | sum('a', 10)", "[3, 1] | min", "[3, 1] | max",
    "['b', 'A'] | min", "['b', 'A'] | max(case_sensitive=true)", "[{'a': 2}, {'a': 1}] | min(attribute='a')",
    "'hello' | max", "[0.1, 0.2, 0.3] | sum", "{'b': 1, 'a': 2} | min", "[true, 2] | sum",
)  # fmt: skip
prints(
    "filter/map", "['a', 'b'] | map('upper') | list", "[{'a': 1}, {}] | map(attribute='a') | list",
    "[{'a': 1}, {}] | map(attribute='a', default=0) | list", "[{'a': {'b': 2}}] | map(attribute='a.b') | list",
    "[[1, 2], [3, 4]] | map(attribute=1) | list", "[[1, 2], [3, 4]] | map('first') | list",
    "['aXb'] | map('replace', 'X', '-') | list", "[none, 1] | map('default', 'd', true) | list",
    "['1', 'x'] | map('int') | sum", "['a', 'b'] | map('length') | list", "[[2, 1]] | map('sort', reverse=true) | list",
    "{'a': 1} | map('upper') | list", "[1.234] | map('round', 1) | list",
    "[{'a': [5, 6]}] | map(attribute='a.1') | list", "['a'] | map('tojson') | join(',')",
    "messages | map(attribute='content') | map('trim') | join('; ')", "[1, 2] | map('string') | join",
    "['x'] | map('indent', 2, true) | list", "[[3], [4]] | map(attribute='0') | list",
    "[{'a': 1}] | map(attribute='a.b.c', default='z') | list",
)  # fmt: skip
prints(
    "filter/select", "[0, 1, '', 'a', none] | select | list", "[0, 1, '', 'a'] | reject | list",
    "[1, 'a', 2.5] | select('string') | list", "[1, 'a', 2.5] | select('number') | list",
    "[1, 2, 3] | select('gt', 1) | list", "[1, 2, 3] | reject('odd') | list", "[1, 2, 3] | select('in', [1, 3]) | list",
    "[1, 2, 3, 4] | select('divisibleby', 2) | list", "['a', 'b'] | reject('equalto', 'a') | join",
    "[none, 1] | select('none') | list", "['a', 'B'] | select('upper') | list", "[1, 2] | select('==', 2) | first",
    "range(6) | select('even') | sum", "[nope, 1] | select('defined') | list",
)  # fmt: skip
prints(
    "filter/selectattr", "l | selectattr('a') | map(attribute='n') | list",
    "l | rejectattr('a') | map(attribute='n') | list", "l | selectattr('a', 'defined') | map(attribute='n') | list",
    "l | selectattr('a', 'equalto', 1) | map(attribute='n') | list",
    "l[:2] | selectattr('a', 'gt', 0) | map(attribute='n') | list",
    "l | rejectattr('n', 'in', ['x', 'z']) | map(attribute='n') | join",
    "l[:1] | selectattr('d.k', 'eq', 5) | map(attribute='n') | list", "l | selectattr('n', 'string') | list | length",
    "l | selectattr('a', 'none') | map(attribute='n') | list",
    "messages | selectattr('role', 'equalto', 'user') | list | length",
    "messages | rejectattr('role', 'equalto', 'user') | list",
    "[[1, 'a'], [2, 'b']] | selectattr(0, 'odd') | map('last') | list",
    "l | selectattr('a', 'undefined') | map(attribute='n') | list", "(l | selectattr('n', 'eq', 'y') | first).a",
    "l | selectattr('n', '!=', 'x') | list | length",
    l=[{"n": "x", "a": 1, "d": {"k": 5}}, {"n": "y", "a": 0}, {"n": "z"}, {"n": "w", "a": None}],
)  # fmt: skip
prints(
    "filter/indent", "'a\\nb\\n\\nc' | indent", "'a\\nb' | indent(2)", "'a\\nb' | indent(2, true)",
    "'a\\n\\nb' | indent(2, blank=true)", "'a\\nb' | indent('>> ')", "'a\\nb' | indent(width=1, first=true)",
    "'' | indent(2, true)", "'a\\n' | indent(2) | tojson", "'a\\r\\nb' | indent(1) | tojson",
    "'a\\n' | indent(2, true, true) | tojson", "'a\\u2028b' | indent(1) | tojson",
    "'\\n' | indent(2, true, true) | tojson",
)  # fmt: skip
prints(
    "filter/wordwrap", "'the quick brown fox' | wordwrap(10)", "'abcdefghij' | wordwrap(4)",
    "'abcdefghij kl' | wordwrap(4, false)", "'a b c d' | wordwrap(3, wrapstring='|')", "'a-b-c-d-e' | wordwrap(3)",
    "'a-b-c-d-e' | wordwrap(3, break_on_hyphens=false)", "'one\\n\\ntwo three' | wordwrap(5)",
    "'  lead trail  ' | wordwrap(6) | tojson", "'' | wordwrap(3) | tojson",
)  # fmt: skip
prints(
    "filter/truncate", "'hello world foo' | truncate(11)", "'hello world' | truncate(5, true)",
    "'hello world foo' | truncate(9, true, '..')", "'hello world foo' | truncate(8, false, '', 0)",
    "'short' | truncate(3)", "'hello world foo bar' | truncate(12, leeway=0)",
    "'abcdefghij' | truncate(6, true, '...', 0)",
)  # fmt: skip
prints(
    "filter/center-format", "'a' | center(5) | tojson", "'%s-%d' | format('a', 3)", "'%(a)s' | format(a=1)",
    "'%05.1f|%-4s|' | format(2.25, 'x')", "'%s' | format(none)", "'%s %s' | format(*['a', 'b'])",
)  # fmt: skip
prints(
    "filter/escape", "'<a href=\"x\">&\\'' | e", "'<' | escape", "'<' | e | e", "'<' | forceescape", "'<' | e ~ '<'",
    "('<' | e) + '<'", "'<' + ('<' | e)", "'<' | safe", "('<b>' | safe) + '<i>'", "'<' | safe | e", "5 | e",
    "('<' | safe) ~ '<'", "('%s' | safe) % '<'", "('<' | e) | upper", "['<' | e]", "('a' | safe).join(['<'])",
    "('<' | safe) | replace('<', '>')", "('<' | e) | length", "'<' | e | tojson", "('<' | safe) is escaped",
    "'<' is escaped", "('{}' | safe).format('<')", "('<' | safe) * 2 + '<'", "('a,<' | safe).split(',')[1] + '<'",
    "('<' | safe) | trim + '<'", "('<' | safe) | string + '<'", "('<' | safe)[0] + '<'",
)  # fmt: skip
prints("filter/items", "{'a': 1, 'b': 2} | items | list", "{} | items | list", "nope | items | list")
prints(
    "filter/web", "'<p>a</p>  <b>b</b> &amp;' | striptags", "'a b&c=d/é' | urlencode",
    "{'a b': 1, 'c': 'é'} | urlencode", "[('x', '1 2')] | urlencode", "{'class': 'a\"b', 'id': none} | xmlattr",
    "'see https://example.com ok' | urlize",
)  # fmt: skip
prints(
    "filter/other", "'a b  c' | wordcount", "1500 | filesizeformat", "1 | filesizeformat",
    "1536 | filesizeformat(true)", "'abc' | attr('upper') is callable", "{'a': 1, 'b': [1, 'x']} | pprint",
    "[3, 1] | pprint", "'a' | pprint", "1000000 | filesizeformat",
)  # fmt: skip
prints(
    "filter/chained", "' a,b ' | trim | upper | replace(',', ';')", "[3, 1, 2] | sort | reverse | join('>')",
    "messages | map(attribute='role') | unique | sort | list | tojson", "(messages | length * 2) if true else 0",
    "messages|length>0", "'a' | upper | lower | title | length | string | int + 1",
)  # fmt: skip
fails(
    "filter-error",
    unknown="'a' | frobnicate", unknown_test="'a' is frobnicated", unknown_in_map="['a'] | map('frobnicate') | list", unknown_in_select="['a'] | select('frobnicated') | list",
    length_int="5 | length", length_none="none | length", join_none="none | join(',')", list_none="none | list", sort_mixed="[1, 'a'] | sort", sort_none="[none, 1] | sort",
    sum_strings="['a'] | sum", first_int="5 | first", abs_string="'a' | abs", round_string="'a' | round", round_method="1 | round(1, 'up')", dictsort_list="[1] | dictsort",
    dictsort_by="{} | dictsort(by='x')", items_list="[1] | items | list", map_none="none | map('upper') | list", map_nothing="[1] | map | list", selectattr_nested_missing="[{}] | selectattr('d.k') | list", selectattr_missing="[{'a': 1}, {}] | selectattr('a', 'gt', 0) | list",
    upper_arguments="'a' | upper(1)", trim_arguments="' ' | trim('x', 'y')", replace_missing="'a' | replace('b')", tojson_range="range(2) | tojson", tojson_generator="[1] | map('string') | tojson",
    tojson_items="{}.items() | tojson", tojson_tuple_key="{(1, 2): 3} | tojson", tojson_sort_mixed="{1: 2, 'a': 3} | tojson(sort_keys=true)", tojson_namespace="namespace(a=1) | tojson", tojson_keyword="1 | tojson(foo=1)",
    tojson_bytes="'a'.encode() | tojson", tojson_macro="raise_exception | tojson if false else nope | tojson", sort_attribute_missing="[{'a': 1}, {'b': 2}] | sort(attribute='a')", min_mixed="[1, 'a'] | min", int_list_error="'a' | int('x', 'y')",
    batch_zero="[1] | slice(0) | list", unique_unhashable="[[1], [1]] | unique | list", format_bad="'%d' | format('a')", indent_none="none | indent", reverse_int="5 | reverse", join_attribute_missing="[1] | join(',', attribute='a') ~ nope.x",
    groupby_mixed="[{'a': 1}, {'a': 'x'}] | groupby('a')", random_empty="[] | random ~ nope.x", wordwrap_zero="'abc' | wordwrap(0)", max_none="[none, 1] | max",
)  # fmt: skip
each(
    "filter",
    unknown_in_dead_branch="{% if false %}{{ 'a' | frobnicate }}{% endif %}ok",
    unknown_in_taken_branch="{% if true %}{{ 'a' | frobnicate }}{% endif %}",
    unknown_in_dead_conditional="{{ ('a' | frobnicate) if false else 'ok' }}",
    unknown_in_dead_loop="{% for x in [] %}{{ x | frobnicate }}{% endfor %}ok",
    unknown_in_uncalled_macro="{% macro m() %}{{ 'a' | frobnicate }}{% endmacro %}ok",
    unknown_test_in_dead_branch="{% if false %}{{ 'a' is frobnicated }}{% endif %}ok",
    tests_of_names="{{ 'upper' is filter }}{{ 'frobnicate' is filter }}{{ 'odd' is test }}{{ 'tojson' is filter }}{{ 'nope' is test }}",
    with_parentheses_of_nothing="{{ 'a' | upper() }}{{ 'a' | default() }}",
    dotted="{{ 'a' | foo.bar }}",
    is_with_filter="{{ 'A' | lower is lower }}{{ ('a' is lower) | string }}",
)

# --- tojson ----------------------------------------------------------------------------------------------------------

V = {"b": [1, 2.0, None, True], "a": {"é": "日本 🙂", "q": "\"\\/\b\f\n\r\t\x01\x7f\u2028"}, "html": "<a href='x'>&</script>"}
prints(
    "tojson/plain", "v | tojson", "'<>&\\'' | tojson", "1 | tojson", "1.0 | tojson", "none | tojson", "true | tojson",
    "'a' | tojson", "[] | tojson", "{} | tojson", "(1, 'b') | tojson", "'' | tojson", "1e16 | tojson", "1e-7 | tojson",
    "-0.0 | tojson", "0.1 | tojson", "12345678901234567890 | tojson", v=V,
)  # fmt: skip
prints(
    "tojson/indent", "v | tojson(indent=2)", "v | tojson(indent=4)", "v | tojson(indent=0)", "[] | tojson(indent=2)",
    "{} | tojson(indent=2)", "[[], {}, [1]] | tojson(indent=1)", "[1] | tojson(indent=none)", "1 | tojson(indent=2)",
    "[1, [2]] | tojson(indent='->')", "{'a': 1} | tojson(indent=true)", v={"b": [1, {"c": []}], "a": {}},
)  # fmt: skip
prints(
    "tojson/positional", "{'é': 1} | tojson(true)", "[1, 2] | tojson(false, 2)",
    "[1, 2] | tojson(false, none, (',', ':'))", "{'b': 1, 'a': 2} | tojson(false, none, none, true)",
    "[1] | tojson(true, 1, (';', '='), false)",
)  # fmt: skip
prints(
    "tojson/ensure-ascii", "v | tojson(ensure_ascii=true)", "v | tojson(ensure_ascii=false)",
    "'é🙂\\x7f' | tojson(ensure_ascii=True)", v=V,
)  # fmt: skip
prints(
    "tojson/separators", "v | tojson(separators=(',', ':'))", "v | tojson(separators=(', ', ': '))",
    "v | tojson(separators=[' ,', ' :'])", "[1, 2] | tojson(indent=2, separators=(',', ':'))",
    "{'a': 1} | tojson(separators=(';', '='))", "[1, 2] | tojson(indent=1, separators=(' , ', ':'))",
    v={"a": [1, 2], "b": {"c": 3}},
)  # fmt: skip
prints(
    "tojson/sort-keys", "v | tojson(sort_keys=true)", "v | tojson(sort_keys=true, indent=2)",
    "{2: 1, 10: 2, 1: 3} | tojson(sort_keys=true)", "{'é': 1, 'z': 2, 'Z': 3} | tojson(sort_keys=true)",
    v={"b": 1, "a": {"d": 2, "c": 3}, "B": 4},
)  # fmt: skip
prints(
    "tojson/keys", "{1: 2} | tojson", "{none: 1, true: 2, 2.5: 3} | tojson", "{1: 'a', '1': 'b'} | tojson",
    "{'': 1} | tojson", "{1e16: 1} | tojson",
)  # fmt: skip
prints(
    "tojson/special", "(1e308 * 10) | tojson", "(-1e308 * 10) | tojson", "(1e308 * 10 - 1e308 * 10) | tojson",
    "{'a': (1, (2,))} | tojson", "dict(a=1) | tojson", "('<' | safe) | tojson", "messages[0].items() | list | tojson",
    "messages[0].keys() | list | tojson", "[true, false] | tojson",
)  # fmt: skip
prints(
    "tojson/strings", "s | tojson", "s | tojson | tojson", "s | tojson | length", "s | tojson(ensure_ascii=true)",
    s="</script> & <b> 'single' \"double\" back\\slash / \u2028\u2029 \x00\x1f\x7f\x80 é 日 🙂 \ufeff",
)  # fmt: skip
prints(
    "tojson/built", "{'name': 'f', 'arguments': {'a': [1, 2]}} | tojson", "([{'a': 1}] + [{'b': none}]) | tojson",
    "dict(messages[0], extra=1) | tojson", "(messages[0].content ~ '!') | tojson", "{'name': 'f'}|tojson|trim",
    "'[' ~ ([1, 2] | tojson)[1:-1] ~ ']'", "{'a': 1 if true else 2} | tojson(indent=1) | indent(2)",
)  # fmt: skip

# --- tests -----------------------------------------------------------------------------------------------------------

VALUES = "[none, true, 0, 1.5, '', 'a', [], {}, (), range(2), messages, messages[0]]"
for kind in ("none", "boolean", "true", "false", "integer", "float", "number", "string", "mapping", "iterable", "sequence", "callable", "defined", "escaped"):
    snippet(
        f"test/is-{kind}",
        "{% for v in " + VALUES + " %}{{ 1 if v is " + kind + " else 0 }}{% endfor %}{{ 1 if nope is " + kind + " else 0 }}",
    )  # fmt: skip
prints(
    "test/comparison", "1 is eq 1", "1 is equalto 1.0", "1 is ne 2", "2 is gt 1", "2 is greaterthan(1)", "2 is ge 2",
    "1 is lt 2", "1 is lessthan 2", "1 is le 1", "'a' is eq('a')", "none is eq none",
)  # fmt: skip
prints(
    "test/numbers", "3 is odd", "3 is even", "6 is divisibleby 3", "7 is divisibleby(3)", "0 is even", "-1 is odd",
    "2.0 is even", "true is odd",
)  # fmt: skip
prints("test/strings", "'ab' is lower", "'AB' is upper", "'Ab' is lower", "'1' is upper", "'' is lower", "1 is lower")
prints("test/in", "1 is in [1, 2]", "'a' is in 'cat'", "'a' is in {'a': 1}", "3 is not in [1]", "not 3 is in [1]")
prints(
    "test/negation", "1 is not none", "none is not none", "not none is none", "nope is not defined",
    "1 is not string and 'a' is string", "'a' is not string or true", "not 1 is not defined",
)  # fmt: skip
prints(
    "test/sameas", "true is sameas true", "none is sameas none", "1 is sameas true", "messages is sameas messages",
    "messages[0] is sameas messages[-1]", "[] is sameas []", "'a' is sameas 1", "false is sameas 0",
)  # fmt: skip
prints(
    "test/callable", "range is callable", "namespace is callable", "dict is callable", "raise_exception is callable",
    "strftime_now is callable", "'a'.upper is callable", "cycler is callable", "joiner is callable",
    "messages is callable",
)  # fmt: skip
prints(
    "test/precedence", "1 is number and 2", "1 is number == true", "'a' is string ~ 'b'", "1 is divisibleby 1 and true",
    "[1, 2] | length is eq 2", "(1 is number) + 1", "(1 is defined) is true",
)  # fmt: skip
fails(
    "test-error", chained="1 is defined is true", operator_name="1 is == 1", divisible_zero="1 is divisibleby 0",
    odd_string="'a' is odd", in_number="1 is in 5", lt_mixed="1 is lt 'a'", missing_argument="1 is divisibleby",
    eq_nothing="1 is eq",
)  # fmt: skip

# --- globals ---------------------------------------------------------------------------------------------------------

prints(
    "global/range", "range(3) | list", "range(1, 3) | list", "range(3, 0, -1) | list", "range(0) | list",
    "range(-2) | list", "range(2, 9, 3) | list", "range(messages | length) | list", "range(5)[1]", "range(5) | length",
    "5 in range(5)",
)  # fmt: skip
snippet(
    "global/joiner",
    "{% set sep = joiner(', ') %}{% for x in 'abc' %}{{ sep() }}{{ x }}{% endfor %}{% set j = joiner() %}{{ j() }}{{ j() }}",
)  # fmt: skip
snippet(
    "global/cycler",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{{ c.reset() }}{{ c.current }}",
)  # fmt: skip
snippet(
    "global/names",
    "{{ range is defined }}{{ dict is defined }}{{ lipsum is defined }}{{ cycler is defined }}{{ joiner is defined }}{{ namespace is defined }}{{ raise_exception is defined }}{{ strftime_now is defined }}{{ len is defined }}{{ str is defined }}{{ enumerate is defined }}{{ zip is defined }}{{ now is defined }}{{ gettext is defined }}{{ messages is defined }}{{ tools is defined }}{{ documents is defined }}{{ add_generation_prompt is defined }}{{ continue_final_message is defined }}{{ chat_template is defined }}{{ bos_token is defined }}{{ eos_token is defined }}{{ enable_thinking is defined }}{{ conversation is defined }}",
)  # fmt: skip
FORMS = {"date": "%d %b %Y", "iso": "%Y-%m-%d", "words": "%A, %B %d, %a %b", "time": "%H:%M:%S %I:%M %p"}
FORMS |= {"numbers": "%j %y %m %d %U %W %w %u %V %G", "plain": "%-d %-m %-H %-I %-M %-S %-j", "signs": "100%% %n %t"}
FORMS |= {"combined": "%c | %x | %X | %D | %F | %T | %R | %r", "nothing": "", "text": "no codes é", "pads": "%_d %_m %_H"}
for name, form in FORMS.items():
    snippet(f"strftime/{name}", "{{ strftime_now('" + form + "') }}")
snippet("strftime/spaces", "{{ strftime_now('%e|%k|%l|%C|%h|%f') }}")
snippet(
    "strftime/keyword",
    "{{ strftime_now(format='%Y') }}{{ strftime_now('%Y') | int + 1 }}{{ strftime_now('%d %B %Y').split() }}",
)  # fmt: skip
snippet(
    "strftime/guarded",
    "{% if strftime_now is defined %}{% set d = strftime_now('%d %b %Y') %}{% else %}{% set d = '26 Jul 2024' %}{% endif %}{{ d }}",
)  # fmt: skip
fails("strftime-error", nothing="strftime_now()", number="strftime_now(5)", many="strftime_now('%Y', 1)")
fails(
    "raise",
    text="raise_exception('It failed: ' ~ messages[0].role)", number="raise_exception(5)", none="raise_exception(none)", nothing="raise_exception()", unicode="raise_exception('é 日 🙂\\nsecond line')",
    conditional="raise_exception('no') if false else 'yes'", keyword="raise_exception(message='by name')", after_output="'a' ~ raise_exception('late')",
)  # fmt: skip
each(
    "raise",
    in_macro="{% macro m() %}{{ raise_exception('inside') }}{% endmacro %}a{{ m() }}",
    in_loop="{% for m in messages %}{{ m.role }}{{ raise_exception('at ' ~ loop.index) }}{% endfor %}",
    in_set="{% set _ = raise_exception('set') %}",
)
each(
    "syntax-error",
    unclosed_variable="a {{ b",
    unclosed_block="a {% if b",
    unclosed_comment="a {# b",
    empty_variable="{{ }}",
    empty_block="{% %}",
    two_values="{{ 1 2 }}",
    bad_operator="{{ 1 +* 2 }}",
    missing_bracket="{{ [1, 2 }}",
    missing_in="{% for x [1] %}{% endfor %}",
    bad_character="{{ a ? b }}",
    assignment="{{ a = 1 }}",
    else_alone="{% else %}",
    lambda_="{{ lambda x: x }}",
    comprehension="{{ [x for x in messages] }}",
    dict_unpack="{{ {**{'a': 1}} }}",
    is_nothing="{{ 1 is }}",
    pipe_nothing="{{ 1 | }}",
    dollar="{{ $a }}",
    double_equals_set="{% set x == 1 %}",
    walrus="{{ (x := 1) }}",
    and_symbols="{{ 1 && 2 }}",
    not_symbol="{{ !true }}",
    triple_quotes="{{ '''a''' }}",
    keyword_before_positional="{{ dict(a=1, 2) }}",
)

# --- what transformers does around the template ----------------------------------------------------------------------

TOKENS = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ sep_token }}|{{ cls_token }}|{{ mask_token }}|{{ additional_special_tokens }}|{{ extra_special_tokens }}|{{ image_token }}|{{ boi_token }}|{{ audio_bos_token }}|{{ model_max_length }}|{{ add_bos_token }}"
for tokenizer in (None, "llama", "llama3", "gemma", "deepseek", "cohere", "bare", "none", "extra", "added", "named"):
    snippet(f"variables/tokens-{tokenizer or 'own'}", TOKENS, **({"tokenizer": tokenizer} if tokenizer else {}))
snippet(
    "variables/tokens-overridden", TOKENS, bos_token="<mine>", pad_token=None, image_token="<pic>", tokenizer="llama",
)  # fmt: skip
snippet("variables/kwargs", "{{ a }}{{ b.c }}{{ d }}{{ e }}{{ f }}", a="x", b={"c": [1]}, d=None, e=False, f=1.0)
snippet(
    "variables/kwargs-not-given",
    "{{ enable_thinking is defined }}{{ enable_thinking is not defined or enable_thinking }}",
)  # fmt: skip
for value in (True, False, None, 0, "false"):
    snippet(
        f"variables/enable-thinking-{value}",
        "{{ enable_thinking is defined }}{{ enable_thinking is true }}{{ enable_thinking is false }}{{ enable_thinking == false }}{{ not enable_thinking }}{{ enable_thinking }}",
        enable_thinking=value,
    )  # fmt: skip
STATE = "{{ tools is defined }}{{ tools is none }}{{ tools }}{{ documents is none }}{{ documents }}{{ add_generation_prompt }}"
snippet("variables/defaults", STATE)
snippet("variables/generation-prompt", STATE, add_generation_prompt=True)
snippet("variables/empty-lists", STATE, tools=[], documents=[])
snippet(
    "variables/tools", "{{ tools | length }}{{ tools[0].function.name }}{{ tools | tojson }}{{ tools }}",
    tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {}}}}}],
)  # fmt: skip
snippet("variables/tools-not-objects", "{{ tools }}", tools=["f"])
snippet(
    "variables/documents", "{% for d in documents %}{{ d.title }}:{{ d['text'] }}{{ d }}{% endfor %}",
    documents=[{"title": "T", "text": "x"}, {"other": [1.0]}],
)  # fmt: skip
snippet("variables/documents-not-objects", "{{ documents }}", documents=["d"])
snippet("variables/empty-chat", "a", messages=[])
SHOW = "{% for m in messages %}{{ m }};{% endfor %}"
snippet(
    "messages/nulls-dropped", SHOW,
    messages=[{"role": "user", "content": None, "name": None}, {"role": "assistant", "content": "", "tool_calls": [{"id": None}]}],
)  # fmt: skip
snippet(
    "messages/null-content-tests",
    "{% for m in messages %}{{ m.content is defined }}{{ m.content is none }}{{ 'content' in m }}{{ m['content'] is none }}{{ m.get('content') is none }}{{ m.content }}{% endfor %}",
    messages=[{"role": "assistant", "content": None}],
)  # fmt: skip
snippet("messages/reasoning-content", SHOW, messages=[{"role": "assistant", "reasoning_content": "r", "content": "c"}])
snippet("messages/reasoning", SHOW, messages=[{"role": "assistant", "content": "c", "reasoning": "r"}])
snippet("messages/thinking", SHOW, messages=[{"role": "assistant", "thinking": "t", "content": "c"}])
snippet(
    "messages/reasoning-all", SHOW,
    messages=[{"role": "assistant", "reasoning": "r", "thinking": "t", "reasoning_content": "rc"}],
)  # fmt: skip
snippet("messages/reasoning-two", SHOW, messages=[{"role": "assistant", "reasoning": "r", "thinking": "t"}])
snippet("messages/reasoning-null", SHOW, messages=[{"role": "assistant", "reasoning_content": None, "reasoning": "r"}])
snippet("messages/reasoning-empty", SHOW, messages=[{"role": "assistant", "reasoning_content": "", "reasoning": "r"}])
snippet("messages/reasoning-of-user", SHOW, messages=[{"role": "user", "reasoning": {"a": 1}}])
snippet(
    "messages/extra-keys", SHOW + "{{ messages | tojson }}",
    messages=[{"z": 1, "role": "user", "a": [None, 1.5], "content": {"k": True}}],
)  # fmt: skip
ECHO = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
REPLY = [*HELLO, {"role": "assistant", "content": "I say"}]


def prefill(name: str, source: Any, content: Any, field: bool | str = True, **more: Any) -> None:
    final = content if isinstance(content, dict) else {"content": content}
    extra = {key: more.pop(key) for key in list(more) if key in FIELDS}
    snippet(
        f"continue/{name}", source,
        **{"messages": [*HELLO, {"role": "assistant", **final}], "continue_final_message": field} | extra | more,
    )  # fmt: skip


prefill("plain", ECHO, "I say")
prefill("spaces", ECHO, "I say  ")
prefill("leading-spaces", ECHO, "  \nI say")
prefill("empty", ECHO, "")
prefill("only-spaces", ECHO, "  ")
prefill("newline", ECHO, "I say\n")
prefill("trimmed", ECHO.replace("m.content", "m.content | trim"), "I say")
prefill("trimmed-spaces", ECHO.replace("m.content", "m.content | trim"), "I say  \n")
prefill("trimmed-leading-spaces", ECHO.replace("m.content", "m.content | trim"), "  I say")
prefill("stripped-then-space", ECHO.replace("m.content", "m.content.strip() ~ ' '"), "I say")
prefill("stripped-then-newline", ECHO.replace("m.content", "m.content.strip() ~ '\n'"), "I say")
prefill("upper", ECHO.replace("m.content", "m.content | upper"), "I say")
prefill("upper-of-upper", ECHO.replace("m.content", "m.content | upper"), "I SAY")
prefill("deleted", ECHO.replace("m.content", "m.content[:4]"), "I say more than that")
prefill("dropped-message", "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}", "I say")
prefill("dropped-but-equal", "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}", "Hello")
prefill("twice", "{{ messages[-1].content }}+{{ messages[-1].content }}+", "I say")
prefill("followed-by-lookalike", ECHO + "{{ 'CONTINUE_FINAL_MESSAGE_TAG' }} after", "I say")
prefill("tag-in-content", ECHO, "CONTINUE_FINAL_MESSAGE_TAG x")
prefill("template-without-content", "{% for m in messages %}{% for k, v in m.items() %}{{ v }};{% endfor %}{% endfor %}", "I say")
prefill("field-in-a-comment", "{# content #}{% for m in messages %}{% for k, v in m.items() %}{{ v }};{% endfor %}{% endfor %}", "I say")
prefill("generation-prompt", ECHO, "I say", add_generation_prompt=True)
prefill("no-content", ECHO, {"tool_calls": []})
prefill("null-content", ECHO, {"content": None})
prefill("number", ECHO, 5)
prefill("after-user", ECHO, {"content": "I say", "role": "user"})
prefill("tojson", ECHO.replace("m.content", "m.content | tojson"), 'say "x"')
prefill("tojson-plain", ECHO.replace("m.content", "m.content | tojson"), "I say")
prefill("split-think", ECHO.replace("m.content", "m.content.split('</think>')[-1]"), "<think>a</think>b")
prefill("split-think-only", ECHO.replace("m.content", "m.content.split('</think>')[-1]"), "b")
prefill("unicode", ECHO, "日本 🙂\u00a0")
prefill("length-dependent", "{% for m in messages %}{{ m.content }}{{ m.content | length }}{% endfor %}", "I say")
prefill("endswith-dependent", "{% for m in messages %}{{ m.content }}{{ '!' if m.content.endswith('y') }}{% endfor %}", "I say")
PARTS = "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text if p.type == 'text' else '[' ~ p.type ~ ']' }}{% endfor %}{% endif %}</s>{% endfor %}"
prefill("parts", PARTS, [{"type": "text", "text": "I say "}, {"type": "text", "text": "this"}])
prefill("parts-image-last", PARTS, [{"type": "text", "text": "I say"}, {"type": "image"}])
prefill("parts-without-text", PARTS, [{"type": "image"}])
prefill("parts-empty", PARTS, [])
prefill("parts-trimmed", PARTS.replace("p.text", "p.text | trim"), [{"type": "text", "text": " I say "}])
THINK = "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}</s>{% endfor %}"
prefill("reasoning-content", THINK, {"content": "", "reasoning_content": "I think"}, "reasoning_content")
prefill("reasoning-content-before-content", THINK, {"content": "said", "reasoning_content": "I think"}, "reasoning_content")
prefill("reasoning-by-other-name", THINK, {"content": "", "reasoning": "I think"}, "reasoning_content")
prefill("reasoning-field", THINK, {"content": "", "reasoning": "I think"}, "reasoning")
prefill("reasoning-thinking", THINK, {"content": "", "thinking": "I think"}, "thinking")
prefill("reasoning-missing", THINK, {"content": "x"}, "reasoning_content")
prefill("reasoning-template-without", ECHO, {"content": "x", "reasoning_content": "I think"}, "reasoning_content")
prefill("reasoning-thinking-template", THINK.replace("reasoning_content", "thinking"), {"content": "", "reasoning_content": "I think"}, "reasoning_content")
prefill("reasoning-differs", THINK, {"content": "", "reasoning_content": "I think", "reasoning": "other"}, "reasoning")
prefill("field-content", ECHO, "I say", "content")
prefill("field-other", "{% for m in messages %}{{ m.role }}:{{ m.note }};{% endfor %}", {"content": "x", "note": "noted"}, "note")
prefill("field-role", "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}", "x", "role")
prefill("generation-tag", "{% for m in messages %}{{ m.role }}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}", "I say")
prefill("empty-field-name", ECHO, "I say", "")

NAMED = [{"name": "default", "template": "default {{ messages | length }}"}, {"name": "tool_use", "template": "tools {{ tools | length }}"}, {"name": "rag", "template": "rag {{ documents | length }}"}]
TOOL = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]
snippet("named/default", NAMED)
snippet("named/tools", NAMED, tools=TOOL)
snippet("named/tools-empty", NAMED, tools=[])
snippet("named/documents", NAMED, documents=[{"text": "t"}])
snippet("named/without-tool-use", NAMED[:1], tools=TOOL)
snippet("named/without-default", NAMED[1:])
snippet("named/without-default-tools", NAMED[1:], tools=TOOL)
snippet("named/one-other", NAMED[2:], tools=TOOL)
snippet("named/broken-other", [NAMED[0], {"name": "tool_use", "template": "{% broken"}])
snippet("named/repeated", [NAMED[0], {"name": "default", "template": "second"}])
