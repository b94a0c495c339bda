"""Chat templates in the styles of public model families, for `templates.py`.

Written anew: the layout of a turn and the spellings of special tokens are the families' own, the words and the programs
are not. Each says with which of `templates.INPUTS` it is rendered, and with the special tokens of which of
`templates.TOKENIZERS`.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
# name -> (source, or sources by name; inputs, each a name or a name with keyword arguments; tokenizer)
MODELS: dict[str, tuple[Any, list[Any], str | None]] = {}


def style(name: str, source: str | dict[str, str], *inputs: Any, tokenizer: str | None = None) -> None:
    if isinstance(source, dict):
        found: Any = [{"name": key, "template": text.removeprefix("\n")} for key, text in source.items()]
    else:
        found = source.removeprefix("\n")
    assert name not in MODELS, name
    MODELS[name] = (found, list(inputs), tokenizer)


# --- ChatML and Qwen -------------------------------------------------------------------------------------------------

style(
    "chatml",
    r"""{% set open, close = '<|im_start|>', '<|im_end|>\n' %}{% for m in messages %}{{ open + m['role'] + '\n' + m['content'] + close }}{% endfor %}{% if add_generation_prompt %}{{ open + 'assistant' + '\n' }}{% endif %}""",
    "user", "turns", "closed", "prefill", "prefill_padded", "padded", "empty", "unicode", "parts",
)  # fmt: skip

style(
    "chatml-bos",
    r"""
{% if add_generation_prompt is not defined %}
    {% set add_generation_prompt = true %}
{% endif %}
{{ bos_token -}}
{% for turn in messages %}
    {% if turn.content | trim %}
        {{- '<|im_start|>%s\n' | format(turn.role) }}
        {{- turn.content | trim }}
        {{- '<|im_end|>\n' }}
    {% endif %}
{% else %}
    {{- 'nothing' }}
{% endfor %}
{{- '<|im_start|>assistant\n' if add_generation_prompt else (eos_token if messages[-1].role != 'assistant' else '') }}
""",
    "user", "nogen", "padded", "empty", "prefill_padded", tokenizer="llama",
)  # fmt: skip

style(
    "qwen15",
    r"""
{% for turn in messages %}
{% if loop.first and turn.role != 'system' %}
<|im_start|>system
You answer questions.<|im_end|>
{% endif %}
{{ '<|im_start|>' ~ turn.role }}
{{ turn.content -}}
{% if not loop.last or add_generation_prompt %}
<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt and messages[messages | length - 1].role != 'assistant' %}
<|im_start|>assistant
{% endif %}
""",
    "user", "turns", "closed", "nogen",
)  # fmt: skip

style(
    "qwen25",
    r"""
{%- set preamble = messages[0].content if messages[0].role == 'system' else 'You are a model that helps.' %}
{{- '<|im_start|>system\n' ~ preamble }}
{%- if tools %}
    {{- "\n\n# Functions\n\n<tools>" }}
    {%- for signature in tools %}{{ '\n' ~ signature | tojson }}{% endfor %}
    {{- '\n</tools>\n\nCalls look so:\n<tool_call>\n{"name": "...", "arguments": {}}\n</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- for turn in messages if turn is not sameas messages[0] or turn.role != 'system' %}
    {%- set answers = turn.role == 'tool' %}
    {%- if answers %}
        {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' }}
        {{- '\n<tool_response>\n%s\n</tool_response>' % turn.content }}
        {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' }}
    {%- elif turn.role == 'assistant' and turn.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- if turn.content %}{{ '\n' ~ turn.content }}{% endif %}
        {%- for item in turn.tool_calls %}
            {%- set item = item.function if item.function is defined else item %}
            {{- '\n<tool_call>\n{"name": "' ~ item.name ~ '", "arguments": ' ~ item.arguments | tojson ~ '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ turn.role ~ '\n' ~ turn.content ~ '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' -}}
{%- endif %}
""",
    "turns", "tools", "calls", "calls_text", "parallel", "null", "no_tools",
)  # fmt: skip

style(
    "qwen2-vl",
    r"""
{% set seen = namespace(image=0, video=0) %}
{% for turn in messages %}
<|im_start|>{{ turn['role'] }}
{% if turn['content'] is string %}
{{ turn['content'] }}
{%- else %}
{% for piece in turn['content'] %}
{% if 'text' in piece %}
{{ piece['text'] }}
{%- else %}
{% for kind, label in [('image', 'Picture'), ('video', 'Clip')] if piece['type'].startswith(kind) or kind in piece %}
{% if kind == 'image' %}{% set seen.image = seen.image + 1 %}{% set number = seen.image %}{% else %}{% set seen.video = seen.video + 1 %}{% set number = seen.video %}{% endif %}
{{ label ~ ' ' ~ number ~ ': ' if add_vision_id }}<|vision_start|><|{{ kind }}_pad|><|vision_end|>
{%- endfor %}
{% endif %}
{% endfor %}
{% endif %}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
""",
    "turns", "parts", ("parts", {"add_vision_id": True}), "prefill_parts",
)  # fmt: skip

QWEN3_HEAD = r"""
{%- set found = messages[0].content if messages[0].role == 'system' else none %}
{%- if tools or found is not none %}
    {{- '<|im_start|>system\n' }}{{ found if found is not none }}
    {%- if tools %}
        {{- '\n\n# Functions\n\n<tools>' if found else '# Functions\n\n<tools>' }}
        {%- for signature in tools %}
            {{- '\n' }}{{ signature | tojson }}
        {%- endfor %}
        {{- '\n</tools>\n\nA call is JSON in <tool_call></tool_call>.' }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endif %}
"""

style(
    "qwen3",
    QWEN3_HEAD
    + r"""
{#- Thoughts are shown only after the last thing that a user really asked. #}
{%- set state = namespace(asked=messages|length - 1, searching=true) %}
{%- for past in messages[::-1] %}
    {%- set is_answer = past.content is string and past.content.startswith('<tool_response>') and past.content.endswith('</tool_response>') %}
    {%- if state.searching and past.role == 'user' and not is_answer %}
        {%- set state.searching = false %}
        {%- set state.asked = messages|length - loop.index %}
    {%- endif %}
{%- endfor %}
{%- for turn in messages %}
    {%- set said = turn.content if turn.content is string else '' %}
    {%- if turn.role == 'assistant' %}
        {%- set thought = turn.reasoning_content if turn.reasoning_content is string else '' %}
        {%- if turn.reasoning_content is not string and '</think>' in said %}
            {%- set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > state.asked and (thought or loop.last) %}
            {{- '<think>\n' ~ thought.strip('\n') ~ '\n</think>\n\n' ~ said.lstrip('\n') }}
        {%- else %}
            {{- said }}
        {%- endif %}
        {%- for item in turn.tool_calls if turn.tool_calls %}
            {%- set item = item.function or item %}
            {{- '\n' if said or not loop.first else '' }}
            {{- '<tool_call>\n{"name": "' + item.name + '", "arguments": ' }}
            {{- item.arguments if item.arguments is string else item.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif turn.role == 'tool' %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + said + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
    {%- elif not (turn.role == 'system' and loop.first) %}
        {{- '<|im_start|>' + turn.role + '\n' + said + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""",
    "user", ("user", {"enable_thinking": False}), ("user", {"enable_thinking": True}), "turns", "tools", "calls",
    "calls_text", "parallel", "thinking", "reasoning", "reasoning_calls", "prefill", "prefill_reasoning",
    "prefill_thinking", "null", "tool_response_as_user",
)  # fmt: skip

style(
    "qwen3-thinking-2507",
    QWEN3_HEAD
    + r"""
{%- for turn in messages if turn.role != 'system' %}
    {%- set words = turn.content | default('') %}
    {%- set before, mark, after = words.rpartition('</think>') %}
    {%- set thought = turn.reasoning_content | default(before.removeprefix('<think>')) | trim %}
    {{- '<|im_start|>' ~ turn.role ~ '\n' }}
    {%- if turn.role == 'assistant' and (loop.last or thought) %}{{ '<think>\n' ~ thought ~ '\n</think>\n\n' }}{% endif %}
    {{- (after if mark else words).lstrip('\n') ~ '<|im_end|>\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\n<think>\n' if add_generation_prompt -}}
""",
    "user", "thinking", "reasoning", "closed", "tools",
)  # fmt: skip

style(
    "qwen3-coder",
    r"""
{% macro others(fields, known) %}
    {%- for key in fields if fields is mapping and key not in known %}
        {%- set it = fields[key] %}
        {%- set plain = it is not mapping and (it is string or it is not sequence) %}
        {{- '\n<' ~ key ~ '>' ~ (it | string if plain else it | tojson | safe) ~ '</' ~ key ~ '>' }}
    {%- endfor %}
{% endmacro %}
{% macro element(tag, text) %}{{ '\n<%s>%s</%s>' % (tag, text, tag) }}{% endmacro %}

{%- set has_tools = tools is defined and tools is iterable and tools | length > 0 %}
{%- if messages[0]['role'] == 'system' %}
    {%- set lead = messages[0]['content'] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages[:] %}
{%- endif %}
{%- if lead is defined or has_tools %}
    {{- '<|im_start|>system\n' ~ lead | default('You write code and may call tools.') }}
    {%- if has_tools %}
        {{- '\n\n<tools>' }}
        {%- for entry in tools %}
            {%- set f = entry.function if entry.function is defined else entry %}
            {{- '\n<function>' ~ element('name', f.name) }}
            {%- if f.description is defined %}{{ element('description', f.description | trim) }}{% endif %}
            {{- '\n<parameters>' }}
            {%- if f.parameters is mapping and f.parameters.properties is mapping %}
                {%- for label, spec in f.parameters.properties | items %}
                    {{- '\n<parameter>' ~ element('name', label) }}
                    {{- element('type', spec.type | string) if spec.type is defined }}
                    {{- others(spec, ['name', 'type']) ~ '\n</parameter>' }}
                {%- endfor %}
            {%- endif %}
            {{- others(f.parameters, ['type', 'properties']) }}
            {{- '\n</parameters>\n</function>' }}
        {%- endfor %}
        {{- '\n</tools>' }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for turn in rest %}
    {%- if turn.role == 'tool' %}
        {%- if loop.previtem and loop.previtem.role != 'tool' %}{{ '<|im_start|>user\n' }}{% endif %}
        {{- '<tool_response>\n' ~ turn.content ~ '\n</tool_response>\n' }}
        {%- if loop.nextitem is undefined or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
    {%- elif turn.tool_calls is defined and turn.tool_calls is iterable and turn.tool_calls | length %}
        {{- '<|im_start|>' ~ turn.role }}
        {%- if turn.content is string and turn.content | trim | length > 0 %}{{ '\n' ~ turn.content.strip() ~ '\n' }}{% endif %}
        {%- for one in turn.tool_calls %}
            {{- '\n<tool_call>\n<function=' + one.function.name + '>\n' }}
            {%- for key, value in one.function.arguments | items %}
                {%- set value = value | tojson | safe if value is mapping or (value is sequence and value is not string) else value | string %}
                {{- '<parameter=' + key + '>\n' }}{{ value }}{{ '\n</parameter>\n' }}
            {%- endfor %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ turn.role ~ '\n' ~ turn.content ~ '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
""",
    "turns", "tools", "calls", "calls_text", "parallel", "developer",
)  # fmt: skip

style(
    "qwen35",
    r"""
{%- set pictures = namespace(n=0) %}
{%- macro flat(value, counted=true, in_system=false) %}
    {%- if value is undefined or value is none %}
        {{- '' }}
    {%- elif value is string %}
        {{- value }}
    {%- elif value is mapping or value is not iterable %}
        {{- raise_exception('Content of a wrong type.') }}
    {%- else %}
        {%- for piece in value %}
            {%- if piece.text is defined %}
                {{- piece.text }}
            {%- elif in_system %}
                {{- raise_exception('A system message holds no images.') }}
            {%- elif piece.type in ('image', 'image_url') %}
                {%- if counted %}{% set pictures.n = pictures.n + 1 %}{% endif %}
                {{- 'Picture %d: ' % pictures.n if add_vision_id }}<|vision_start|><|image_pad|><|vision_end|>
            {%- else %}
                {{- raise_exception('What is ' ~ piece.type ~ '?') }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set asked = namespace(at=-1) %}
{%- for turn in messages if turn.role == 'user' %}
    {%- set words = flat(turn.content, false) | trim %}
    {%- if not (words.startswith('<tool_response>') and words.endswith('</tool_response>')) %}
        {%- set asked.at = messages.index(turn) %}
    {%- endif %}
{%- endfor %}
{%- if asked.at < 0 %}{{ raise_exception('The user asked nothing.') }}{% endif %}
{%- for turn in messages %}
    {%- set words = flat(turn.content, in_system=turn.role == 'system') | trim %}
    {%- if turn.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('Nobody has the role ' ~ turn.role) }}
    {%- elif turn.role == 'system' and not loop.first %}
        {{- raise_exception('The system message comes first.') }}
    {%- endif %}
    {%- if turn.role == 'tool' %}
        {{- '<|im_start|>user' if loop.previtem and loop.previtem.role != 'tool' }}
        {{- '\n<tool_response>\n' ~ words ~ '\n</tool_response>' }}
        {{- '<|im_end|>\n' if not (loop.nextitem is defined and loop.nextitem.role == 'tool') }}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' ~ turn.role ~ '\n' }}
    {%- if turn.role == 'assistant' and loop.index0 > asked.at %}
        {{- '<think>\n' ~ turn.reasoning_content | default('', true) | trim ~ '\n</think>\n\n' }}
    {%- endif %}
    {{- words }}
    {%- for one in turn.tool_calls or [] %}
        {{- ('\n\n' if loop.first and words else '') ~ '<tool_call>\n<function=' ~ one.function.name ~ '>\n' }}
        {%- for key in one.function.arguments %}
            {%- set value = one.function.arguments[key] %}
            {{- '<parameter=' ~ key ~ '>\n' ~ (value if value is string else value | tojson) ~ '\n</parameter>\n' }}
        {%- endfor %}
        {{- '</function>\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n<think>\n' ~ ('' if enable_thinking is defined and enable_thinking is true else '\n</think>\n\n') }}
{%- endif %}
""",
    "parts", ("parts", {"add_vision_id": True}), "system_parts", "late_system", "developer", "reasoning_calls",
    ("user", {"enable_thinking": True}), "only_assistant", "tool_response_as_user", "number_content",
)  # fmt: skip

style(
    "qwq",
    r"""
{%- for turn in messages -%}
    {%- set words = (turn.content or '').split('</think>') | last | trim('\n') -%}
    <|im_start|>{{ turn.role }}{{ '\n' ~ words if words }}
    {%- for one in (turn.tool_calls or []) | map(attribute='function') -%}
        {{ '\n<tool_call>' ~ dict(name=one.name, arguments=one.arguments) | tojson ~ '</tool_call>' }}
    {%- endfor -%}
    <|im_end|>{{ '\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\n<think>\n' if add_generation_prompt }}
""",
    "thinking", "calls", "null", "nogen",
)  # fmt: skip

# --- Llama -----------------------------------------------------------------------------------------------------------

style(
    "llama2",
    r"""{% set lead = namespace(text='') %}{% if messages[0]['role'] == 'system' %}{% set lead.text = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if loop.index0 % 2 != (0 if m['role'] == 'user' else 1) %}{{ raise_exception('Roles must take turns: first user, then assistant.') }}{% endif %}{% if m['role'] == 'assistant' %}{{ ' ' ~ m['content'].strip() ~ ' ' ~ eos_token }}{% else %}{{ bos_token ~ '[INST] ' ~ (lead.text ~ m['content']).strip() ~ ' [/INST]' }}{% set lead.text = '' %}{% endif %}{% endfor %}""",
    "user", "turns", "padded", "alternation", "empty", "late_system", "prefill", "prefill_padded", tokenizer="llama",
)  # fmt: skip

style(
    "llama2-spaced",
    r"""
{% if messages[0].role == 'system' %}
    {% set lead, rest = '<<SYS>>\n' + messages[0].content | trim + '\n<</SYS>>\n\n', messages[1:] %}
{% else %}
    {% set lead, rest = '', messages %}
{% endif %}

{% for pair in rest | batch(2) %}

    {% set asked, answered = pair[0], pair[1] %}
    {% if asked.role != 'user' or (answered is defined and answered.role == 'user') %}
        {{ raise_exception('A user asks and an assistant answers.') }}
    {% endif %}

    {{ bos_token ~ '[INST] ' ~ (lead ~ asked.content if loop.first else asked.content) | trim ~ ' [/INST]' }}
    {% if answered is defined %}
        {{ ' ' ~ answered.content | trim ~ ' ' ~ eos_token }}
    {% endif %}

{% endfor %}
""",
    "turns", "padded", "alternation", tokenizer="llama",
)  # fmt: skip

style(
    "llama3",
    r"""{% macro turn(role) %}<|start_header_id|>{{ role }}<|end_header_id|>{{ '\n\n' }}{% endmacro %}{{ bos_token }}{% for m in messages %}{{ turn(m['role']) + m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ turn('assistant') }}{% endif %}""",
    "user", "turns", "padded", "closed", "prefill", "prefill_padded", "unicode", tokenizer="llama3",
)  # fmt: skip

style(
    "llama31",
    r"""
{{- bos_token }}
{#- Who calls may name other tools, another day, and where the tools stand. #}
{%- set offered = custom_tools if custom_tools is defined else tools %}
{%- set in_user = true if tools_in_user_message is not defined else tools_in_user_message %}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{%- macro header(name) %}{{ '<|start_header_id|>' ~ name ~ '<|end_header_id|>\n\n' }}{% endmacro %}
{%- macro catalogue() %}
    {%- for entry in offered %}{{ entry | tojson(indent=4) ~ '\n\n' }}{% endfor %}
{%- endmacro %}
{%- set lead = '' %}
{%- if messages and messages[0]['role'] == 'system' %}
    {%- set lead = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- endif %}

{{- header('system') }}
{%- if builtin_tools is defined or offered is not none %}{{ 'Environment: ipython\n' }}{% endif %}
{%- if builtin_tools is defined %}
    {{- 'Tools: ' + builtin_tools | reject('equalto', 'code_interpreter') | join(', ') + '\n\n' }}
{%- endif %}
{{- 'Known until: December 2023\nDate: ' + date_string + '\n\n' }}
{%- if offered is not none and not in_user %}
    {{- 'Functions that exist:\n\n' ~ catalogue() }}
{%- endif %}
{{- lead ~ '<|eot_id|>' }}

{%- if offered is not none and in_user %}
    {%- if messages | length == 0 %}
        {{- raise_exception('Tools go into the first user message, and there is none!') }}
    {%- endif %}
    {{- header('user') -}}
    {{- 'Answer with JSON that calls one of these.\n\n' ~ catalogue() ~ messages[0]['content']|trim ~ '<|eot_id|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}

{%- for turn in messages %}
    {%- if 'tool_calls' in turn %}
        {%- if turn.tool_calls|length != 1 %}{{ raise_exception('One call at a time!') }}{% endif %}
        {%- set wanted = turn.tool_calls[0].function %}
        {{- header('assistant') -}}
        {%- if builtin_tools is defined and wanted.name in builtin_tools %}
            {%- set listed = namespace(text='') %}
            {%- for key, value in wanted.arguments | items %}
                {%- set listed.text = listed.text ~ (', ' if listed.text else '') ~ key ~ '="' ~ value ~ '"' %}
            {%- endfor %}
            {{- '<|python_tag|>' + wanted.name + '.call(' + listed.text + ')' }}
        {%- else  %}
            {{- '{"name": "' ~ wanted.name ~ '", "parameters": ' ~ wanted.arguments | tojson ~ '}' }}
        {%- endif %}
        {{- '<|eom_id|>' if builtin_tools is defined else '<|eot_id|>' }}
    {%- elif turn.role in ('tool', 'ipython') %}
        {{- header('ipython') }}
        {{- (turn.content | tojson if turn.content is mapping or turn.content is iterable else turn.content) ~ '<|eot_id|>' }}
    {%- else %}
        {{- header(turn['role']) ~ turn['content'] | trim ~ '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ header('assistant') }}{% endif %}
""",
    "user", "turns", ("turns", {"date_string": "1 Jan 2000"}), "tools", ("tools", {"tools_in_user_message": False}),
    ("calls", {"builtin_tools": ["get_weather", "code_interpreter", "wolfram_alpha"]}), "parallel", "system_only_tools",
    "dict_content", ("user", {"custom_tools": [{"name": "own"}]}), "prefill", tokenizer="llama3",
)  # fmt: skip

style(
    "llama32-vision",
    r"""
{{- bos_token }}
{%- set kinds = namespace(all=[]) %}
{%- for turn in messages if turn.content is not string %}
    {%- set kinds.all = kinds.all + turn.content | map(attribute='type') | list %}
{%- endfor %}
{%- if 'image' in kinds.all and 'system' in messages | map(attribute='role') %}
    {{- raise_exception("Images and a system message do not go together.") }}
{%- endif %}
{%- for turn in messages %}
    {{- '<|start_header_id|>' ~ turn.role ~ '<|end_header_id|>\n\n' }}
    {%- for piece in ([{'type': 'text', 'text': turn.content}] if turn.content is string else turn.content) %}
        {{- {'text': piece.text, 'image': '<|image|>'}[piece.type] }}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
    "turns", "parts", "system_parts", "prefill_parts", tokenizer="llama3",
)  # fmt: skip

style(
    "llama3-groq",
    r"""
{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>

A model with tools.

<tools>{% for tool in tools %} {{ tool['function'] | tojson(indent=2) }}{% if not loop.last %},{% endif %}{% endfor %}
</tools><|eot_id|>{% endif %}
{% for message in messages if message.role in ('system', 'user', 'assistant', 'tool') %}
<|start_header_id|>{{ message.role }}<|end_header_id|>

{% if message.tool_calls %}<tool_call>
{% for call in message.tool_calls %}{"id": {{ loop.index0 }}, "name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}{{ "\n" if not loop.last }}{% endfor %}

</tool_call>{% elif message.role == 'tool' %}<tool_response>
{"id": {{ message.tool_call_id | default(0) | tojson }}, "result": {{ message.content }}}
</tool_response>{% else %}{{ message.content | trim }}{% endif %}<|eot_id|>
{%- endfor %}
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}
""",
    "turns", "tools", "calls", "developer", tokenizer="llama3",
)  # fmt: skip

style(
    "llama4",
    r"""
{{- bos_token }}
{%- set head = '<|header_start|>%s<|header_end|>\n\n' %}
{%- set lead = messages[0].content if messages[0].role == 'system' else ('Calls are written [f(a=1)].' if tools else '') %}
{%- if lead is not string %}
    {%- set lead = lead | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}
{%- endif %}
{%- if lead | trim %}
    {{- head % 'system' ~ lead | trim }}
    {%- if tools is not none %}
        {{- '\n[\n' }}{% for t in tools %}{{ t | tojson(indent=4) ~ (',\n' if not loop.last else '\n]') }}{% endfor %}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endif %}
{%- for turn in messages if turn.role != 'system' %}
    {%- if turn.role in ['tool', 'ipython'] %}
        {{- head % 'ipython' }}
        {%- for piece in ([turn.content] if turn.content is string else turn.content | map(attribute='text')) %}
            {{- piece | tojson }}
        {%- endfor %}
        {{- '<|eom|>' }}
    {%- elif turn.tool_calls %}
        {{- head % 'assistant' ~ '<|python_start|>' }}
        {%- for one in turn.tool_calls | map(attribute='function') %}
            {{- '{"name": %s, "parameters": %s}' % (one.name | tojson, one.arguments | tojson) }}
        {%- endfor %}
        {{- '<|python_end|><|eom|>' }}
    {%- else %}
        {{- head % turn.role }}
        {%- if turn.content is string %}{{ turn.content }}{% else %}
            {%- for piece in turn.content %}{{ piece.text | trim if piece.type == 'text' else '<|image|>' if piece.type == 'image' }}{% endfor %}
        {%- endif %}
        {{- '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{{- head % 'assistant' if add_generation_prompt }}
""",
    "turns", "parts", "system_parts", "tools_bare", "parallel", tokenizer="llama3",
)  # fmt: skip

style(
    "llama-guard",
    r"""
{% set judged = ['User', 'Agent'][messages|length % 2 - 1] if messages|length % 2 == 1 else 'Agent' %}
{% set categories = categories | default({'S1': 'Violence.', 'S2': 'Theft.', 'S10': 'Spam.'}, true) %}
{{ bos_token }}<|start_header_id|>user<|end_header_id|>

Is the last message of {{ judged }} safe?

<BEGIN CATEGORIES>
{% for number, words in categories.items() if number not in (excluded_category_keys or []) %}
{{ number }}: {{ words }}{{ '\n' }}
{%- endfor %}
<END CATEGORIES>
{% for turn in messages %}

{{ {'user': 'User', 'assistant': 'Agent'}[turn.role] }}: {{ turn.content | trim }}
{% endfor %}

<|eot_id|><|start_header_id|>assistant<|end_header_id|>


""",
    "user", "closed", ("user", {"excluded_category_keys": ["S2"]}), ("user", {"categories": {"O1": "Rude.", "O2": "Loud."}}),
    tokenizer="llama3",
)  # fmt: skip

# --- Mistral ---------------------------------------------------------------------------------------------------------

style(
    "mistral-v1",
    r"""{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' and loop.index is odd %}{{ '[INST] ' ~ m['content'] ~ ' [/INST]' }}{% elif m['role'] == 'assistant' and loop.index is even %}{{ m['content'] ~ eos_token ~ ' ' }}{% elif m['role'] in ('user', 'assistant') %}{{ raise_exception('Not the turn of ' ~ m['role'] ~ '.') }}{% else %}{{ raise_exception('Nobody here is called ' ~ m['role'] ~ '!') }}{% endif %}{% endfor %}""",
    "user", "closed", "system", "alternation", "prefill", tokenizer="llama",
)  # fmt: skip

style(
    "mistral-v3",
    r"""
{%- set lead = none %}
{%- if messages[0]["role"] == "system" %}
    {%- set lead = messages[0]["content"] %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- set asked = messages | selectattr("role", "equalto", "user") | list %}
{%- macro nine(id, what) %}
    {%- if id is undefined or id | length != 9 %}{{ raise_exception(what ~ " needs an id of 9 characters!") }}{% endif %}
    {{- id }}
{%- endmacro %}

{#- Calls and their results stand outside of the turns. #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for m in messages if m.role not in ["tool", "tool_results"] and not m.tool_calls %}
    {%- if (ns.index % 2 == 0) != (m["role"] == "user") %}
        {{- raise_exception("User and assistant take turns, but message " ~ loop.index ~ " does not") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}

{{- bos_token }}
{%- for m in messages %}
    {%- if m["role"] == "user" %}
        {%- if tools is not none and m == asked[-1] %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for f in tools | map(attribute="function") %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in f.items() if key != "return" %}
                    {{- '"%s": ' % key ~ ('"' ~ val ~ '"' if val is string else val|tojson) ~ (", " if not loop.last else "}}") }}
                {%- endfor %}
                {{- ", " if not loop.last else "]" }}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " ~ (lead ~ "\n\n" if loop.last and lead is not none else "") ~ m["content"] ~ "[/INST]" }}
    {%- elif m.tool_calls is defined and m.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for one in m.tool_calls %}
            {%- set text = one.function|tojson %}
            {{- text[:-1] ~ ', "id": "' ~ nine(one.id, "A call") ~ '"}' ~ (", " if not loop.last else "]" ~ eos_token) }}
        {%- endfor %}
    {%- elif m["role"] == "assistant" %}
        {{- " " + m["content"]|trim + eos_token}}
    {%- elif m["role"] in ("tool", "tool_results") %}
        {%- set inner = m.content.content if m.content is mapping and m.content.content is defined else m.content %}
        {{- '[TOOL_RESULTS] {"content": ' ~ inner|string ~ ', "call_id": "' ~ nine(m.tool_call_id, "A result") ~ '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("The role " ~ m.role ~ " stands where it cannot") }}
    {%- endif %}
{%- endfor %}
""",
    "turns", "tools", "tools_history", "short_ids", "calls", "alternation", "late_system", "dict_content", tokenizer="llama",
)  # fmt: skip

style(
    "mistral-v7",
    r"""
{%- set frames = {'user': ('[INST] ', '[/INST]'), 'system': ('[SYSTEM_PROMPT] ', '[/SYSTEM_PROMPT]'), 'assistant': (' ', eos_token)} -%}
{{ bos_token }}
{%- for m in messages -%}
    {%- if m['role'] not in frames %}{{ raise_exception('No frame for ' ~ m['role']) }}{% endif -%}
    {%- set left, right = frames[m['role']] -%}
    {{ left ~ m['content'] ~ right }}
{%- endfor -%}
""",
    "turns", "developer", "prefill", tokenizer="llama",
)  # fmt: skip

style(
    "mistral-small-3",
    r"""
{%- macro text_of(value) %}
    {%- if value is string %}{{ value }}{% else %}
        {%- for block in value %}
            {%- if block['type'] == 'text' %}{{ block['text'] }}
            {%- elif block['type'] in ['image', 'image_url'] %}{{ '[IMG]' }}
            {%- else %}{{ raise_exception('Text and images only, no ' + block['type']) }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{{- bos_token }}
{%- if messages[0]['role'] != 'system' %}
    {{- '[SYSTEM_PROMPT]You run offline.\nToday is ' + strftime_now("%Y-%m-%d") + '.[/SYSTEM_PROMPT]' }}
{%- endif %}
{%- for m in messages %}
    {%- if m['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + text_of(m['content']) + '[/SYSTEM_PROMPT]' }}
    {%- elif m['role'] == 'user' %}
        {{- '[INST]' + text_of(m['content']) + '[/INST]' }}
    {%- elif m['role'] == 'assistant' %}
        {{- (m['content'] if m['content'] is string else m['content'][0]['text']) + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "user", "turns", "parts", "prefill_parts", "parts_odd", "calls", tokenizer="llama",
)  # fmt: skip

style(
    "mistral-v11",
    r"""
{{- bos_token }}
{%- set days = strftime_now("%Y-%m-%d") ~ ' ' ~ strftime_now('%A, %d. %B') %}
{%- for m in messages | selectattr('role', 'eq', 'system') %}{{ '[SYSTEM_PROMPT]' ~ m.content ~ '\n' ~ days ~ '[/SYSTEM_PROMPT]' }}{%- endfor %}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' ~ (tools| tojson) ~ '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for m in messages | rejectattr('role', 'equalto', 'system') %}
    {%- if m['role'] == 'user' %}
        {%- set blocks = m['content'] %}
        {%- if blocks is string %}{%- set blocks = [{'type': 'text', 'text': blocks}] %}{% endif %}
        {%- if blocks | length == 2 %}{%- set blocks = blocks | sort(attribute='type') %}{% endif %}
        {{- '[INST]' }}
        {%- for block in blocks %}{{ block['text'] if block['type'] == 'text' else '[IMG]' }}{% endfor %}
        {{- '[/INST]' }}
    {%- elif m['role'] == 'assistant' %}
        {%- set spoken = m['content'] is defined and m['content'] is not none and m['content']|length > 0 %}
        {%- set calling = m['tool_calls'] is defined and m['tool_calls'] is not none and m['tool_calls']|length > 0 %}
        {%- if not spoken and not calling %}{{ raise_exception('The assistant says nothing and calls nothing.') }}{% endif %}
        {{- m['content'] if m['content'] is string else m['content'] | map(attribute='text') | join }}
        {%- for one in m['tool_calls'] if calling %}
            {%- set given = one['function']['arguments'] %}
            {{- '[TOOL_CALLS]' ~ one['function']['name'] ~ '[CALL_ID]' ~ one.id ~ '[ARGS]' ~ (given if given is string else given|tojson|safe) }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif m['role'] == 'tool' %}
        {{- '[TOOL_RESULTS]' ~ m.tool_call_id ~ '[TOOL_CONTENT]' ~ m['content']|string ~ '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Who is ' + m['role'] + '?') }}
    {%- endif %}
{%- endfor %}
""",
    "turns", "tools", "calls", "calls_text", "parallel", "parts", "empty_assistant", "null", "developer",
    "thinking", tokenizer="llama",
)  # fmt: skip

style(
    "magistral",
    r"""
{{- bos_token }}
{%- set loop_messages = messages %}
{%- set found = loop_messages | selectattr('role', 'in', ['system', 'developer']) | map(attribute='content') | first | default('Think first.', true) %}
{{- '[SYSTEM_PROMPT]' ~ found ~ '[/SYSTEM_PROMPT]' }}
{%- for message in loop_messages | rejectattr('role', 'in', ['system', 'developer']) | list %}
    {%- if message.role == 'user' %}
        {{- '[INST]' ~ message.content ~ '[/INST]' }}
    {%- elif message.role == 'assistant' %}
        {%- if message.reasoning_content is defined %}{{ '[THINK]' ~ message.reasoning_content | trim ~ '[/THINK]' }}{% endif %}
        {%- if message.content is string and '<think>' in message.content %}
            {%- set head, _, tail = message.content.partition('</think>') %}
            {{- '[THINK]' ~ head.removeprefix('<think>') | trim ~ '[/THINK]' ~ tail.strip() ~ eos_token }}
        {%- elif message.content is string %}
            {{- message.content ~ eos_token }}
        {%- else %}
            {%- for part in message.content %}
                {%- if part.type == 'thinking' %}{{ '[THINK]' ~ part.thinking ~ '[/THINK]' }}{% else %}{{ part.text }}{% endif %}
            {%- endfor %}
            {{- eos_token }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
""",
    "turns", "thinking", "reasoning", "thinking_parts", "developer", "prefill_reasoning", tokenizer="llama",
)  # fmt: skip

style(
    "mixtral",
    r"""
{%- set expected = namespace(role='user') -%}
{%- set lead = '' -%}
{%- if messages[0].role == 'system' -%}{%- set lead = messages[0].content + '\n\n' -%}{%- endif -%}

{{- bos_token }}
{%- for m in (messages[1:] if lead else messages) %}
    {%- if m.role != expected.role %}
        {{- raise_exception('It was the turn of ' ~ expected.role ~ ', not of ' ~ m.role) }}
    {%- endif %}
    {%- if m.role == 'user' %}
        {{- ' [INST] ' ~ (lead if loop.first) ~ m.content ~ ' [/INST]' }}
    {%- else %}
        {{- ' ' + m.content + eos_token}}
    {%- endif %}
    {%- set expected.role = {'user': 'assistant'}.get(m.role, 'user') %}
{%- endfor %}
""",
    "turns", "closed", "alternation", "late_system", tokenizer="llama",
)  # fmt: skip

# --- Gemma -----------------------------------------------------------------------------------------------------------

style(
    "gemma",
    r"""{% set names = {'user': 'user', 'assistant': 'model'} %}{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('There is no system role') }}{% endif %}{% if m['role'] != ['user', 'assistant'][loop.index0 % 2] %}{{ raise_exception('Roles must alternate') }}{% endif %}<start_of_turn>{{ names[m['role']] ~ '\n' ~ m['content'] | trim }}<end_of_turn>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>' + names.assistant + '\n' }}{% endif %}""",
    "user", "closed", "system", "alternation", "prefill_padded", "unicode", tokenizer="gemma",
)  # fmt: skip

style(
    "gemma3",
    r"""
{{ bos_token }}
{%- set prefix = namespace(text='') -%}
{%- for entry in messages -%}
    {%- set spoken = entry['content'] is string -%}
    {%- if entry['role'] == 'system' and loop.first -%}
        {%- set prefix.text = (entry['content'] if spoken else entry['content'][0]['text']) + '

' -%}
        {%- continue -%}
    {%- endif -%}
    {%- if loop.previtem and entry['role'] == loop.previtem['role'] -%}
        {{ raise_exception("User and model must take turns") }}
    {%- endif -%}
    <start_of_turn>{{ 'model' if entry['role'] == 'assistant' else entry['role'] }}
{{ prefix.text }}
    {%- set prefix.text = '' -%}
    {%- if not spoken and entry['content'] is not iterable -%}
        {{ raise_exception("Content of an invalid type") }}
    {%- elif spoken -%}
        {{ entry['content'] | trim }}
    {%- else -%}
        {%- for part in entry['content'] -%}
            {%- if part['type'] == 'text' -%}
                {{ part['text'] | trim }}
            {%- elif part['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    <end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}
    <start_of_turn>model
{% endif -%}
""",
    "turns", "padded", "parts", "system_parts", "alternation", "number_content", "prefill", "prefill_parts", tokenizer="gemma",
)  # fmt: skip

style(
    "gemma4",
    r"""
{%- set q = '<|"|>' -%}
{%- macro literal(it, quoted=True) -%}
    {%- if it is string -%}
        {{- q + it + q -}}
    {%- elif it is boolean -%}
        {{- 'true' if it else 'false' -}}
    {%- elif it is mapping -%}
        {{- '{' -}}
        {%- for key, inner in it | dictsort -%}
            {{- ',' if not loop.first }}{{ q + key + q if quoted else key }}:{{ literal(inner, quoted=quoted) -}}
        {%- endfor -%}
        {{- '}' -}}
    {%- elif it is sequence -%}
        {{- '[' -}}{%- for inner in it -%}{{- literal(inner, quoted) -}}{%- if not loop.last %},{% endif -%}{%- endfor -%}{{- ']' -}}
    {%- else -%}
        {{- it -}}
    {%- endif -%}
{%- endmacro -%}
{%- macro fields(specs, needed) -%}
    {%- for key, spec in specs | dictsort if key not in ['nullable', 'required'] -%}
        {%- set kind = spec['type'] | upper if spec['type'] is string else spec['type'] | map('upper') | list -%}
        {%- set ns = namespace(bits=[]) -%}
        {%- if spec['description'] %}{% set ns.bits = ns.bits + ['description:' ~ literal(spec['description'])] %}{% endif -%}
        {%- if kind == 'STRING' and spec['enum'] %}{% set ns.bits = ns.bits + ['enum:' ~ literal(spec['enum'])] %}{% endif -%}
        {%- if kind == 'ARRAY' and spec['items'] is mapping and spec['items'] -%}
            {%- set inside -%}
                {%- for k, v in spec['items'] | dictsort if v is not none -%}
                    {{ ',' if not loop.first }}{{ k }}:{{ literal(v | upper if v is string else v) }}
                {%- endfor -%}
            {%- endset -%}
            {%- set ns.bits = ns.bits + ['items:{' ~ inside ~ '}'] -%}
        {%- elif kind == 'OBJECT' -%}
            {%- set ns.bits = ns.bits + ['properties:{' ~ fields(spec['properties'] | default({}), spec['required'] | default([])) ~ '}'] -%}
        {%- endif -%}
        {%- set ns.bits = ns.bits + ['type:' ~ literal(kind)] -%}
        {{ ',' if not loop.first }}{{ key }}{{ '!' if needed and key in needed }}:{{ '{' ~ ns.bits | join(',') ~ '}' }}
    {%- endfor -%}
{%- endmacro -%}
{%- macro without_thoughts(text) -%}
    {%- set kept = namespace(text='') -%}
    {%- for piece in text.split('<channel|>') -%}
        {%- set kept.text = kept.text + piece.split('<|channel>')[0] -%}
    {%- endfor -%}
    {{- kept.text | trim -}}
{%- endmacro -%}
{%- set thinking = enable_thinking is defined and enable_thinking -%}
{%- set lead = messages[0]['role'] in ['system', 'developer'] -%}
{{ bos_token }}
{%- if thinking or tools or lead -%}
    {{- '<|turn>system\n' -}}
    {%- if thinking %}{{ '<|think|>\n' }}{% endif -%}
    {%- if lead %}{{ messages[0]['content'] | trim }}{% endif -%}
    {%- for f in (tools or []) | map(attribute='function') -%}
        {{- '<|tool>declaration:' ~ f['name'] ~ '{description:' ~ literal(f['description']) -}}
        {%- if f['parameters']['properties'] -%}
            ,parameters:{ {{- fields(f['parameters']['properties'], f['parameters']['required']) -}} }
        {%- endif -%}
        {{- '}<tool|>' -}}
    {%- endfor %}
    {{- '<turn|>\n' -}}
{%- endif %}
{%- for turn in (messages[1:] if lead else messages) -%}
    {%- set role = 'model' if turn['role'] == 'assistant' else turn['role'] -%}
    {{- '<|turn>' + role + '\n' }}
    {%- for one in turn['tool_calls'] -%}
        {%- set given = one['function']['arguments'] -%}
        {{- '<|tool_call>call:' ~ one['function']['name'] -}}
        {{- literal(given, quoted=False) if given is mapping else '{' ~ given ~ '}' -}}
        {{- '<tool_call|>' -}}
    {%- endfor -%}
    {%- if turn['content'] is string -%}
        {{- without_thoughts(turn['content']) if role == 'model' else turn['content'] | trim -}}
    {%- elif turn['content'] is sequence -%}
        {%- for part in turn['content'] -%}
            {{- part['text'] | trim if part['type'] == 'text' else '\n\n<|image|>\n\n' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<turn|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\n' -}}
{%- endif -%}
""",
    "user", "system", ("system", {"enable_thinking": True}), "tools", "tools_rich", "calls", "calls_text", "parallel",
    "parts", "channels", tokenizer="gemma",
)  # fmt: skip

# --- Phi -------------------------------------------------------------------------------------------------------------

style(
    "phi3",
    r"""{{ bos_token }}{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}{{ '<|user|>\n' ~ m['content'] ~ '<|end|>\n<|assistant|>\n' }}{% else %}{{ m['content'] ~ '<|end|>\n' }}{% endif %}{% endfor %}""",
    "user", "turns", "prefill", tokenizer="llama",
)  # fmt: skip

style(
    "phi35",
    r"""{% for m in messages %}{% if m['content'] or m['role'] != 'system' %}<|{{ m['role'] }}|>
{{ m['content'] }}<|end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% else %}{{ eos_token }}{% endif %}""",
    "turns", "closed", "empty", tokenizer="llama",
)  # fmt: skip

style(
    "phi4",
    r"""{% for m in messages if m['role'] in ['system', 'user', 'assistant'] %}<|im_start|>{{ m['role'] }}<|im_sep|>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] ~ '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] ~ '<|im_end|>' }}{% endif %}{% endfor %}{{ '<|im_start|>assistant<|im_sep|>' if add_generation_prompt else '' }}""",
    "turns", "closed", "prefill",
)  # fmt: skip

style(
    "phi4-mini",
    r"""{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'system' and m['tools'] is defined and m['tools'] is not none %}<|tool|>{{ m['tools'] }}<|/tool|>{% endif %}<|end|>{% endfor %}{{ add_generation_prompt and '<|assistant|>' or eos_token }}""",
    "turns", "system_tools_field", "closed",
)  # fmt: skip

# --- DeepSeek --------------------------------------------------------------------------------------------------------

style(
    "deepseek-coder",
    r"""
{%- if messages | selectattr('role', 'equalto', 'system') | list | length == 0 -%}
{{ 'You write programs, and nothing else.\n' }}
{%- endif %}
{%- for m in messages %}
    {%- set title = {'user': '### Instruction:\n', 'system': ''}.get(m['role'], '### Response:\n') %}
{{ title ~ m['content'] -}}
    {%- if m['role'] == 'user' %}
{{ '\n' -}}
    {%- elif m['role'] == 'assistant' %}
{{ '\n<|EOT|>\n' -}}
    {%- endif %}
{%- endfor %}
{{ '### Response:\n' }}
""",
    "user", "turns", tokenizer="deepseek",
)  # fmt: skip

style(
    "deepseek-v2",
    r"""{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}Assistant: {{ m['content'] ~ eos_token }}{% else %}{{ ('User: ' if m['role'] == 'user' else '') ~ m['content'] ~ '\n\n' }}{% endif %}{% endfor %}{{ 'Assistant:' * add_generation_prompt }}""",
    "turns", "closed", tokenizer="deepseek",
)  # fmt: skip

style(
    "deepseek-v3",
    r"""
{%- set ns = namespace(lead='', open_results=false, any_result=false) -%}
{%- for m in messages if m['role'] == 'system' -%}
    {%- set ns.lead = ns.lead + ('\n\n' if ns.lead else '') + m['content'] -%}
{%- endfor -%}
{{ bos_token ~ ns.lead }}
{%- for m in messages -%}
    {%- if m['role'] == 'tool' -%}
        {{ '\n' if ns.any_result else '<｜tool▁outputs▁begin｜>' }}<｜tool▁output▁begin｜>{{ m['content'] }}<｜tool▁output▁end｜>
        {%- set ns.any_result = true -%}
        {%- set ns.open_results = true -%}
        {%- continue -%}
    {%- endif -%}
    {%- if ns.open_results and m['role'] == 'assistant' -%}<｜tool▁outputs▁end｜>
    {%- elif m['role'] == 'assistant' -%}<｜Assistant｜>
    {%- elif m['role'] == 'user' -%}{{ '<｜User｜>' + m['content'] }}
    {%- endif -%}
    {%- set ns.open_results = false -%}
    {%- if m['role'] == 'assistant' -%}
        {%- if 'content' in m and m['content'] is string -%}{{ m['content'] ~ eos_token }}{%- endif -%}
        {%- for one in m['tool_calls'] or [] -%}
            {{ '<｜tool▁calls▁begin｜>' if loop.first else '\n' }}<｜tool▁call▁begin｜>
            {{- one['type'] + '<｜tool▁sep｜>' + one['function']['name'] }}
            {{- '\n```json\n' + one['function']['arguments'] + '\n```' }}<｜tool▁call▁end｜>
            {{- '<｜tool▁calls▁end｜>' + eos_token if loop.last }}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{{ '<｜tool▁outputs▁end｜>' if ns.open_results else '<｜Assistant｜>' if add_generation_prompt }}
""",
    "turns", "calls", "calls_text", "parallel_text", "late_system", tokenizer="deepseek",
)  # fmt: skip

style(
    "deepseek-r1",
    r"""
{{- bos_token -}}
{%- for m in messages -%}
    {%- if m['role'] == 'assistant' -%}
        <｜Assistant｜>{{ m['content'].split('</think>')[-1] if m['content'] is not none }}{{ eos_token }}
    {%- else -%}
        {{ {'user': '<｜User｜>'}.get(m['role'], '') + m['content'] }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<｜Assistant｜><think>{{ '\n' }}{%- endif -%}
""",
    "thinking", "turns", "prefill", "prefill_thinking", tokenizer="deepseek",
)  # fmt: skip

style(
    "deepseek-v31",
    r"""
{% if thinking is not defined %}{% set thinking = false %}{% endif %}
{%- set mark = '<think>' if thinking else '</think>' %}
{%- set ns = namespace(leads=[], after_user=false) %}
{%- for m in messages if m.role == 'system' %}{% set ns.leads = ns.leads + [m.content] %}{% endfor %}
{%- if tools is defined and tools is not none %}
    {%- set described = '## Tools\n' %}
    {%- for f in tools | map(attribute='function') %}
        {%- set ns.last = '\n### ' + f.name + '\n' + f.description + '\n\nParameters: ' + (f.parameters | tojson) + '\n' %}
        {%- set ns.leads = ns.leads + [ns.last if not loop.first else described ~ ns.last] %}
    {%- endfor %}
{%- endif %}
{{- bos_token ~ ns.leads | join('\n\n') }}
{%- for m in messages if m.role != 'system' %}
    {%- if m.role == 'user' %}
        {{- '<｜User｜>' ~ m.content }}
    {%- elif m.role == 'tool' %}
        {{- '<｜tool▁output▁begin｜>' ~ m.content ~ '<｜tool▁output▁end｜>' }}
    {%- else %}
        {{- '<｜Assistant｜>' ~ (mark if m.prefix else '</think>') if ns.after_user }}
        {{- (m.content or '').split('</think>', 1)[-1] }}
        {%- for one in m.tool_calls if m.tool_calls is defined and m.tool_calls is not none %}
            {%- set given = one.function.arguments %}
            {{- '<｜tool▁calls▁begin｜>' if loop.first }}<｜tool▁call▁begin｜>{{ one.function.name }}<｜tool▁sep｜>{{ given if given is string else given | tojson }}<｜tool▁call▁end｜>
            {{- '<｜tool▁calls▁end｜>' if loop.last }}
        {%- endfor %}
        {{- eos_token }}
    {%- endif %}
    {%- set ns.after_user = m.role == 'user' %}
{%- endfor -%}
{%- if add_generation_prompt and ns.after_user %}{{ '<｜Assistant｜>' ~ mark }}{% endif %}
""",
    "turns", ("turns", {"thinking": True}), "tools", "parallel", "calls_text", "thinking", tokenizer="deepseek",
)  # fmt: skip

# --- Cohere ----------------------------------------------------------------------------------------------------------

COMMAND_R_DEFAULT = r"""{{ bos_token }}{% set start = '<|START_OF_TURN_TOKEN|>' %}{% set end = '<|END_OF_TURN_TOKEN|>' %}{% if messages[0]['role'] == 'system' %}{{ start + '<|SYSTEM_TOKEN|>' + messages[0]['content'] + end }}{% set messages = messages[1:] %}{% elif false == true %}{{ start + '<|SYSTEM_TOKEN|>You are polite.' + end }}{% endif %}{% for m in messages %}{% if m['role'] == 'user' and loop.index0 % 2 == 0 %}{% set who = '<|USER_TOKEN|>' %}{% elif m['role'] == 'assistant' and loop.index0 % 2 == 1 %}{% set who = '<|CHATBOT_TOKEN|>' %}{% else %}{{ raise_exception('user and assistant by turns') }}{% endif %}{{ start + who + m['content'].strip() + end }}{% endfor %}{% if add_generation_prompt %}{{ start + '<|CHATBOT_TOKEN|>' }}{% endif %}"""

COMMAND_R_TOOLS = r"""
{%- macro python_type(spec) %}
    {%- set plain = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
    {%- if spec.type is string and spec.type in plain %}{{ plain[spec.type] }}
    {%- elif spec.type == "array" %}{{ 'List[' ~ python_type(spec['items']) ~ ']' }}
    {%- elif spec.type == "object" %}{{ 'Dict[str, ' ~ python_type(spec.additionalProperties or {}) ~ ']' }}
    {%- elif spec.type is iterable and spec.type is not string and spec.type %}
        {{- "Union[" }}{% for t in spec.type %}{{ python_type({"type": t}) ~ (',' if not loop.last else ']') }}{% endfor %}
    {%- else %}Any
    {%- endif %}
{%- endmacro %}
{%- macro optional(text, needed) %}{{ text if needed else 'Optional[' ~ text ~ ']' }}{% endmacro %}
{%- macro signature(f) %}
    {%- set old = f.parameter_definitions is defined %}
    {%- set specs = f.parameter_definitions if old else f.parameters.properties %}
    {{- '```python\ndef ' ~ f.name ~ '(' }}
    {%- for key, spec in specs|items %}
        {%- set needed = spec.required if old else key in (f.parameters.required or []) %}
        {{- key ~ ': ' ~ optional(spec.type if old else python_type(spec), needed) ~ ('' if needed else ' = None') ~ (', ' if not loop.last) }}
    {%- endfor %}
    {{- ') -> List[Dict]:\n    #' ~ f.description }}
    {%- if specs|length != 0 and not old %}
        {%- for key, spec in specs|items %}{{ '\n    # ' ~ key ~ ': ' ~ spec.description }}{% endfor %}
    {%- endif %}
    {{- '\n    pass\n```' }}
{%- endmacro %}
{{- bos_token ~ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>## Tools\n' }}
{%- for entry in tools %}
    {{- '\n\n' if loop.index0 != 0 }}{{ signature(entry.function if entry.function is defined else entry) }}
{%- endfor %}
{{- '<|END_OF_TURN_TOKEN|>' }}
{%- for m in messages %}
    {%- set tags = dict(user='USER', assistant='CHATBOT') %}
    {{- '<|START_OF_TURN_TOKEN|><|' ~ tags.get(m.role, 'SYSTEM') ~ '_TOKEN|>' }}
    {%- if m.role == 'tool' %}
        {{- '<results>\n' ~ m.content|trim ~ '</results>' }}
    {%- elif m.tool_calls is defined %}
        {{- m.content|trim if m.content is defined }}
        {{- '\nAction:\n```json\n[\n' }}
        {%- for one in m.tool_calls | map(attribute='function') %}
            {{- '{\n'|indent(4, first=true) ~ ('"tool_name": "' ~ one.name ~ '",\n')|indent(8, first=true) ~ '"parameters": '|indent(8, first=true) }}
            {{- one.arguments|tojson(indent=4)|indent(8) if one.arguments|length > 0 else '{}' }}
            {{- '\n' ~ '}'|indent(4, first=true) ~ (',\n' if not loop.last else '\n') }}
        {%- endfor %}
        {{- ']```' }}
    {%- else %}
        {{- m.content|trim }}
    {%- endif %}
    {{- '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' if add_generation_prompt }}
"""

COMMAND_R_RAG = r"""{{ bos_token }}{% macro turn(who) %}<|START_OF_TURN_TOKEN|><|{{ who }}_TOKEN|>{{ caller() }}<|END_OF_TURN_TOKEN|>{% endmacro %}{% for m in messages %}{% call turn({'user': 'USER', 'system': 'SYSTEM'}.get(m['role'], 'CHATBOT')) %}{{ m['content'].strip() }}{% endcall %}{% endfor %}{% call turn('SYSTEM') %}<results>{% for document in documents %}

Document: {{ loop.index0 }}
{% for name, text in document.items() %}
{{ name }}: {{ text }}
{% endfor %}
{% endfor %}</results>{% endcall %}{{ 'Cite each claim.' if citation_mode == 'accurate' }}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"""

style(
    "command-r", {"default": COMMAND_R_DEFAULT, "tool_use": COMMAND_R_TOOLS, "rag": COMMAND_R_RAG},
    "turns", "tools", "calls", "parallel", "empty_tools", "old_tools", "tools_rich", "documents", tokenizer="cohere",
)  # fmt: skip

style(
    "command-r-rag", COMMAND_R_RAG,
    "documents", ("documents", {"citation_mode": "accurate"}), "user", tokenizer="cohere",
)  # fmt: skip

style(
    "command-r7b",
    r"""
{{ bos_token }}
{%- set t = '<|START_OF_TURN_TOKEN|>' -%}
{%- macro results_of(turn) -%}
{# a block that is a turn's #}
{{ t }}<|SYSTEM_TOKEN|><|START_TOOL_RESULT|>[
{{ caller(turn) | indent(4, true) }}
]<|END_TOOL_RESULT|><|END_OF_TURN_TOKEN|>
{%- endmacro -%}
{%- macro place_of(identity) %}
{%- set walk = namespace(n=0, at=none) %}
{%- for turn in messages if turn.tool_calls %}
    {%- for one in turn.tool_calls %}
        {%- if walk.at is none and one.id == identity %}{% set walk.at = walk.n %}{% endif %}
        {%- set walk.n = walk.n + 1 %}
    {%- endfor %}
{%- endfor %}
{{- walk.at }}
{%- endmacro %}
{%- set state = namespace(done=[], shown=false, n=0) %}
{{- t }}<|SYSTEM_TOKEN|># Preamble
{% if tools %}

## Tools
[
{% for f in tools | map(attribute='function') %}
    {"name": "{{ f['name'] }}", "parameters": {{ f['parameters']|tojson }}}{%- if not loop.last %},{% endif %}

{% endfor %}
]
{% endif %}
{%- for turn in messages if turn.role|lower == 'system' %}


# Developer
{{ turn.content }}
{%- endfor -%}
<|END_OF_TURN_TOKEN|>
{%- for turn in messages %}
    {%- set role = turn.role|lower %}
    {%- if role == 'user' %}
{{ t }}<|USER_TOKEN|>{{ turn.content }}<|END_OF_TURN_TOKEN|>
        {%- if documents and not state.shown %}
            {%- set state.shown = true %}
            {%- call(_) results_of(turn) %}{% for doc in documents %}{"{{ loop.index0 }}": {{doc|tojson}}}{% if not loop.last %},
{% endif %}{% endfor %}{% endcall %}
        {%- endif %}
    {%- elif role in ('assistant', 'chatbot') %}
{{ t }}<|CHATBOT_TOKEN|>
        {%- if turn.tool_calls %}<|START_ACTION|>[
    {% for one in turn.tool_calls %}
    {"tool_call_id": "{{ state.n }}", "tool_name": "{{ one['function']['name'] }}", "parameters": {{ one['function']['arguments']|tojson }}}{% if not loop.last %},{% endif %}

    {% set state.n = state.n + 1 %}
    {% endfor %}
]<|END_ACTION|>{% else %}<|START_RESPONSE|>{{turn.content}}<|END_RESPONSE|>{% endif %}<|END_OF_TURN_TOKEN|>
    {%- elif role == 'tool' and turn.tool_call_id not in state.done %}
        {%- set at = loop.index0 %}
        {%- call(first) results_of(turn) %}
            {%- for other in messages[at:] %}
                {%- if other.role|lower != 'tool' %}{% break %}{% endif %}
                {%- set state.done = state.done + [other.tool_call_id] %}
                {{- '' if loop.first else ',\n' }}{"tool_call_id": "{{ place_of(other.tool_call_id) }}", "results": {{ [other.content]|tojson }}}
            {%- endfor %}
        {%- endcall %}
    {%- endif %}
{%- endfor %}{{ t }}<|CHATBOT_TOKEN|>
""",
    "turns", "documents", "tools", "parallel", "upper_roles", tokenizer="cohere",
)  # fmt: skip

style(
    "aya",
    r"""
{%- set ns = namespace(seen=[], systems='') -%}
{%- for m in messages -%}
    {%- if m.role | lower in ['system', 'developer'] -%}
        {%- set ns.systems = (ns.systems ~ '\n' ~ m.content) | trim -%}{%- continue -%}
    {%- endif -%}
    {%- if m.role not in ns.seen -%}{%- set ns.seen = ns.seen + [m.role] -%}{%- endif -%}
    {%- if ns.seen | length > 2 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{{ bos_token }}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{ ns.systems | default('None given.', true) }} ({{ ns.seen | join('/') }})<|END_OF_TURN_TOKEN|>
{%- for m in messages -%}
    {%- if m.role in ('system', 'developer') -%}{%- continue -%}{%- endif -%}
    {%- set who = {'user': 'USER', 'assistant': 'CHATBOT'}.get(m.role, 'SYSTEM') -%}
    {{ '<|START_OF_TURN_TOKEN|><|%s_TOKEN|>' % who }}{{ m.content | string | trim }}<|END_OF_TURN_TOKEN|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{%- endif -%}
""",
    "turns", "late_system", "calls", "developer", tokenizer="cohere",
)  # fmt: skip

# --- Granite, Hermes -------------------------------------------------------------------------------------------------

style(
    "granite-30",
    r"""
{%- macro block(name, text) %}
{{- '<|start_of_role|>' ~ name ~ '<|end_of_role|>' ~ text ~ '<|end_of_text|>
' }}
{%- endmacro %}
{%- if tools %}
    {%- set listed %}

{% for entry in tools %}
{{ entry | tojson(indent=4) }}
{%- if not loop.last %}{{ '

' }}{% endif %}
{% endfor %}
{% endset %}
    {{- block('available_tools', listed.rstrip()) }}
{%- endif %}
{%- for m in messages %}
    {%- if m['role'] == 'assistant_tool_call' %}
        {{- block('assistant', '<|tool_call|>' + m['content']) }}
    {%- elif m['role'] in ['system', 'user', 'assistant', 'tool_response'] %}
        {{- block(m['role'], m['content']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_of_role|>assistant<|end_of_role|>' }}
{%- endif %}
""",
    "turns", "tools", "tool_roles", "prefill",
)  # fmt: skip

style(
    "granite-33",
    r"""
{# A model with documents, thinking and controls #}
{% set role_of = '<|start_of_role|>{}<|end_of_role|>' %}
 {% if messages[0]['role'] == 'system' %}
     {% set lead = messages[0]['content'] %}
     {% set messages = messages[1:] %}
 {% else %}
     {% set uses = [] %}
     {% if tools %}{% set uses = uses + ['tools'] %}{% endif %}
     {% if documents %}{% set uses = uses + ['documents'] %}{% endif %}
     {% set lead = " Knowledge ends: April 2024.\n Today: " ~ strftime_now('%B %d, %Y') ~ "." %}
     {% if uses %}
         {% set lead = lead ~ " Use " ~ uses | join(' and ') ~ "." %}
     {% elif thinking %}
         {% set lead = lead ~ " Put thoughts in <think></think>." %}
     {% endif %}
     {% if 'citations' in controls and documents %}
         {% set lead = lead + '\nCite with <|start_of_cite|>.' %}
     {% endif %}
 {% endif %}
 {{- role_of.format('system') ~ lead ~ '<|end_of_text|>\n' }}
 {%- if tools %}
     {{- role_of.format('available_tools') ~ tools | tojson(indent=4) ~ '<|end_of_text|>\n' }}
 {%- endif %}
 {%- for document in documents or [] %}
     {{- role_of.format('document {"document_id": "' ~ (document['doc_id'] | default(loop.index)) ~ '"}') ~ '\n' }}
     {{- document['text'] ~ '<|end_of_text|>\n' }}
 {%- endfor %}
 {%- for turn in messages %}
     {{- role_of.format(turn['role']) ~ turn['content'] ~ '<|end_of_text|>\n' }}
 {%- endfor %}
 {%- if add_generation_prompt %}
     {{- role_of.format('assistant' ~ (' ' ~ controls | tojson() if controls)) }}
 {%- endif %}
""",
    "turns", "documents", "documents_tools", ("user", {"thinking": True, "controls": {"length": "long"}}),
    ("documents", {"controls": {"citations": True}}),
)  # fmt: skip

HERMES_TOOLS = r"""
{%- set simple = {"string": "str", "number": "float", "integer": "int", "boolean": "bool", "null": "None"} %}
{%- macro hint(schema) %}
    {%- if schema.type is defined and simple[schema.type | string] is defined %}
        {{- simple[schema.type] }}
    {%- elif schema.type == "array" %}
        {{- "list[" + hint(schema['items'] or {}) + "]"}}
    {%- elif schema.type == "object" and schema.additionalProperties is mapping %}
        {{- "dict[str, " + hint(schema.additionalProperties) + ']'}}
    {%- elif schema.type == "object" %}
        {{- "dict" }}
    {%- elif schema.type is iterable and schema.type %}
        {%- for part in schema.type %}
            {{- ("Union[" if loop.first) ~ hint({"type": part}) ~ ("," if not loop.last else "]") }}
        {%- endfor %}
    {%- else %}
        {{- "Any" }}
    {%- endif %}
{%- endmacro %}

{{- bos_token ~ '<|im_start|>system\n<tools>' }}
{%- for f in tools | map(attribute='function') %}
    {{- '\n{"name": "' ~ f.name ~ '", "description": "' ~ f.name ~ '(' }}
    {%- set specs = f.parameters.properties %}
    {%- for key, spec in specs|items %}
        {{- key ~ ": " ~ hint(spec) ~ (", " if not loop.last else "") }}
    {%- endfor %}
    {{- ")" ~ (" -> " ~ hint(f.return) if f.return is defined) ~ " - " ~ f.description }}
    {%- for key, spec in specs|items %}
        {{- "\n\n    Args:" if loop.first }}{{ "\n        %s(%s): %s" % (key, hint(spec), spec.description|default('-')|trim) }}
    {%- endfor %}
    {{- "\n    Returns:\n        " + f.return.description if f.return is defined and f.return.description is defined }}
    {{- '", "parameters": ' ~ ("{}" if specs | length == 0 else f.parameters|tojson) ~ '}' }}
{%- endfor %}
{{- '\n</tools>\nThe schema: {"properties": {"name": {"title": "Name"}}, "required": ["name"]}}
' }}
{{- '<|im_end|>
' }}
{%- for turn in messages %}
    {%- if turn.role == 'tool' %}
        {{- '<|im_start|>tool\n' if loop.previtem and loop.previtem.role != 'tool' }}
        {{- '<tool_response>\n' ~ turn.content ~ '\n</tool_response>' }}
        {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' else '\n' }}
    {%- else %}
        {{- '<|im_start|>' ~ turn.role }}
        {%- for one in turn.tool_calls %}
            {{- '\n<tool_call>\n{"name": "' ~ one.function.name ~ '"' }}
            {%- if one.function.arguments is defined %}
                {{- ', "arguments": ' ~ (one.function.arguments if one.function.arguments is string else one.function.arguments|tojson) }}
            {%- endif %}
            {{- '}\n</tool_call>' }}
        {%- else %}
            {{- '\n' ~ turn.content }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

style(
    "hermes",
    {
        "default": r"""{{ bos_token }}{% if messages[0]['role'] != 'system' %}{% set messages = [{'role': 'system', 'content': 'Say what you know.'}] + messages %}{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] ~ '\n' ~ m['content'] }}<|im_end|>{{ '\n' }}{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}""",
        "tool_use": HERMES_TOOLS,
    },
    "user", "tools", "tools_rich", "calls", "calls_text", "parallel", "empty_tools", "tools_with_return", "prefill",
    tokenizer="llama3",
)  # fmt: skip

# --- Small and older families ----------------------------------------------------------------------------------------

style(
    "zephyr",
    r"""{% set tags = ['system', 'user', 'assistant'] %}
{% for m in messages %}
{% if m['role'] in tags %}
<|{{ m['role'] }}|>
{{ m['content'] ~ eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
<|{{ tags[-1] }}|>
{% endif %}
{% endfor %}""",
    "user", "turns", "closed", "prefill", tokenizer="llama",
)  # fmt: skip

style(
    "falcon",
    r"""{% for m in messages %}{{ '\n' if loop.index > 1 }}{% if m['role'] != 'system' %}{{ m['role'] | capitalize }}: {% endif %}{{ m['content'].replace('\r\n', '\n').replace('\n\n', '\n') if m['role'] == 'user' else m['content'] | trim }}{% endfor %}{{ '\nFalcon:' if add_generation_prompt }}""",
    "turns", "newlines",
)  # fmt: skip

style(
    "falcon3",
    r"""
{% if tools %}
<|system|>
{{ messages[0].content if messages[0].role == 'system' }}
The tools, as they are: [{% for tool in tools %}{{ tool.function or tool }}{{ ', ' if not loop.last }}{% endfor %}]
{% for m in messages if m.role != 'system' %}
<|{{ m.role }}|>
{{ m.content }}
{% endfor %}
{% else %}
{% for m in messages %}
<|{{ m.role }}|>
{{ m.content }}{{ eos_token if m.role == 'assistant' }}
{% if loop.last and add_generation_prompt %}
<|assistant|>
{% endif %}
{% endfor %}
{% endif %}
""",
    "turns", "tools", "closed", tokenizer="llama",
)  # fmt: skip

style(
    "yi",
    r"""{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<|im_end|>{{ '\n' }}{% else %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% if m['role'] == 'user' %}{{ '<|im_start|>assistant\n' }}{% endif %}{% endif %}{% endfor %}""",
    "user", "turns",
)  # fmt: skip

style(
    "internlm2",
    r"""
{{ bos_token }}{% if messages | selectattr('role', 'equalto', 'system') | list | length == 0 %}<|im_start|>system
You speak two languages: 中文 and English.<|im_end|>
{% endif %}
{% if tools %}<|im_start|>system name=<|plugin|>
{{ tools | map(attribute='function') | list | tojson(indent=2, ensure_ascii=false) }}<|im_end|>
{% endif %}
{% for message in messages %}
<|im_start|>{% if message.role == 'tool' %}environment name=<|plugin|>{% else %}{{ message.role }}{% endif %}

{% if message.content is defined %}{{ message.content }}{% endif %}
{% if message.tool_calls is defined %}{% for call in message.tool_calls %}<|action_start|><|plugin|>
{{ {'name': call.function.name, 'parameters': call.function.arguments} | tojson }}<|action_end|>{% endfor %}{% endif %}
<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}
""",
    "user", "turns", "tools", "calls", tokenizer="llama",
)  # fmt: skip

style(
    "olmo",
    r"""{{ eos_token }}{% for m in messages if m['role'] != 'system' %}
<|{{ m['role'] }}|>
{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}

{% endfor %}
{{ '<|assistant|>' if add_generation_prompt }}""",
    "user", "turns", tokenizer="bare",
)  # fmt: skip

style(
    "olmo2",
    r"""{{ bos_token }}{% for m in messages %}{{ '<|' ~ m['role'] ~ '|>\n' ~ m['content'] }}{% if m['role'] != 'assistant' %}{{ '\n' }}{% else %}{{ eos_token ~ ('' if loop.last else '\n') }}{% endif %}{% endfor %}{{ '<|assistant|>\n' if add_generation_prompt }}""",
    "turns", "closed", "prefill", tokenizer="bare",
)  # fmt: skip

style(
    "olmo3",
    r"""
{%- set listed = ' <functions>' ~ (tools | tojson if tools is not none else '[]') ~ '</functions>' -%}
{%- if not messages | selectattr('role', 'equalto', 'system') | list -%}
    {{- '<|im_start|>system\nYou may call functions.' ~ listed ~ '<|im_end|>\n' -}}
{%- endif -%}
{%- for m in messages -%}
    {{- '<|im_start|>' ~ {'tool': 'environment'}.get(m['role'], m['role']) ~ '\n' ~ (m.get('content', none) or '') -}}
    {%- if m['role'] == 'system' -%}
        {{- ' <functions>' + m['functions'] + '</functions>' if m.get('functions', none) is not none else listed -}}
    {%- elif m.get('tool_calls', none) is not none -%}
        {{- '<function_calls>' -}}
        {%- for one in m['tool_calls'] -%}
            {{- '\n' if not loop.first }}{{ one['function']['name'] }}({% for key, value in one['function']['arguments'].items() -%}
                {{- key ~ '=' ~ value | tojson -}}{{- '' if loop.last else ', ' -}}
            {%- endfor -%}) -
        {%- endfor -%}
        {{- '</function_calls>' -}}
    {%- endif -%}
    {{- eos_token if loop.last and m['role'] == 'assistant' else '<|im_end|>' + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
""",
    "user", "turns", "tools_bare", "calls", "calls_text", "parallel",
)  # fmt: skip

style(
    "smollm3",
    r"""
{# ── what holds unless it is said otherwise ── #}
{%- set thinks = enable_thinking if enable_thinking is defined else true -%}
{%- set lead = messages[0].content if messages[0].role == "system" else none -%}
{%- if lead -%}
  {%- if "/no_think" in lead -%}{%- set thinks = false -%}{%- elif "/think" in lead -%}{%- set thinks = true -%}{%- endif -%}
  {%- set wishes = lead.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{%- set blank = "" if thinks else "<think>\n\n</think>\n" -%}

{{- "<|im_start|>system\n" -}}
{%- if lead and "/system_override" in lead -%}
  {{- wishes.replace("/system_override", "").rstrip() -}}
{%- else -%}
  {%- set today = strftime_now("%d %B %Y") -%}
  {{- "Known until: June 2025\nToday: " ~ today ~ "\nMode: " ~ ("/think" if thinks else "/no_think") ~ "\n\n" -}}
  {{- wishes + "\n\n" if wishes else "Think first.\n\n" if thinks else "Answer at once.\n\n" -}}
  {%- set written = namespace(text="") -%}
  {%- for entry in (tools or xml_tools or [])[:] -%} {# a slice is a list, whatever it is cut from #}
    {%- set written.text = written.text ~ (entry | string) ~ "\n" -%}
  {%- endfor -%}
  {%- if written.text -%}{{- "<tools>\n" + written.text + "</tools>\n\n" -}}{%- endif -%}
  {%- if python_tools -%}
    {{- "<code>\n" -}}{%- for entry in python_tools -%}{{- entry | string ~ "\n" -}}{%- endfor -%}{{- "</code>\n\n" -}}
  {%- endif -%}
{%- endif -%}
{{- "<|im_end|>\n" -}}
{# ── the talk ── #}
{%- for m in messages if m.role != "system" -%}
    {%- set words = m.content if m.content is string else "" -%}
    {%- if m.role == "assistant" -%}
        {% generation %}
        {{- "<|im_start|>assistant\n" + blank + words.lstrip("\n") + "<|im_end|>\n" -}}
        {% endgeneration %}
    {%- else -%}
        {{ "<|im_start|>user\n"  + words + "<|im_end|>\n" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ "<|im_start|>assistant\n" + blank }}
{%- endif -%}
""",
    "user", "turns", ("turns", {"enable_thinking": False}), "tools", ("user", {"python_tools": ["def f(x): ...", "def g(): ..."]}),
    ("user", {"xml_tools": [{"name": "f", "strict": True, "limits": [1.5, None]}]}), "override", "calls", "prefill",
)  # fmt: skip

style(
    "vicuna",
    r"""{% set talk = messages %}{% set lead = 'A curious person asks.' %}{% if talk[0]['role'] == 'system' %}{% set lead = talk[0]['content'] %}{% set talk = talk[1:] %}{% endif %}{{ bos_token + lead.strip() }}{% for m in talk %}{% if m['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}{{ raise_exception('turns!') }}{% endif %}{{ ' ' + m['role'].upper() + ': ' + m['content'].strip() }}{% if loop.index0 % 2 == 1 %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}""",
    "user", "padded", "alternation", tokenizer="llama",
)  # fmt: skip

style(
    "alpaca",
    r"""
{% set title = {'user': '### Instruction:', 'assistant': '### Response:'} %}
{{ bos_token -}}
{% for m in messages %}
    {% if m['role'] == 'system' and loop.first %}
        {{- m['content'] | trim }}
    {% elif m['role'] == 'user' %}
        {{- title['user'] + '\n' + m['content'] | trim }}
    {% else %}
        {{- title['assistant'] + '\n' + m['content'] | trim + eos_token }}
    {% endif %}

{% endfor %}
{% if add_generation_prompt %}
    {{- title['assistant'] + '\n' }}
{% endif %}
""",
    "user", "padded", "closed", tokenizer="llama",
)  # fmt: skip

style(
    "openchat",
    r"""{{ bos_token }}{% set who = 'GPT4 Correct ' %}{% for m in messages %}{{ who ~ m['role'].title() ~ ': ' ~ m['content'] }}<|end_of_turn|>{% endfor %}{{ who ~ 'assistant'.title() ~ ':' if add_generation_prompt }}""",
    "turns", "upper_roles", tokenizer="llama",
)  # fmt: skip

style(
    "solar",
    r"""{% for m in messages if m['content'] %}### {{ m['role'] | title }}:
{{ m['content'] ~ ('\n\n' if m['role'] != 'assistant') }}{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}""",
    "turns", "empty",
)  # fmt: skip

style(
    "starchat",
    r"""
{%- set tokens = dict(system='<|system|>', user='<|user|>', assistant='<|assistant|>') -%}
{%- if messages[0].role != 'system' %}{{ tokens.system }}
{{ '<|end|>\n' }}{% endif %}
{%- for message in messages %}
{{- tokens[message.role] }}
{{ message.content }}<|end|>
{% endfor %}
{%- if add_generation_prompt %}{{ tokens['assistant'] }}{% endif %}
""",
    "user", "turns", "calls",
)  # fmt: skip

style(
    "saiga",
    r"""{% for m in messages %}{% set who = {'assistant': 'bot'}[m['role']] | default(m['role'], true) %}{{ [bos_token, who, '\n', m['content'], eos_token] | join ~ ('\n' if not loop.last else '') }}{% endfor %}{% if add_generation_prompt %}{{ '\n' ~ bos_token ~ 'bot\n' }}{% endif %}""",
    "user", "turns", tokenizer="llama",
)  # fmt: skip

style(
    "amberchat",
    r"""
{% set names = {'user': '### Human: ', 'assistant': '### Assistant: '} %}
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ message.content ~ '\n' }}{% continue %}{% endif %}
    {{- names[message.role] ~ message.content.strip() ~ '\n' }}
{%- endfor %}
{{- names.assistant.rstrip() if add_generation_prompt else '' }}
""",
    "turns", "padded", "developer", tokenizer="llama",
)  # fmt: skip

style(
    "chatqa",
    r"""
{{ bos_token }}System: {{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | join('\n') or 'Answer from the context.' }}

{% for document in documents or [] %}
{{ loop.index }}. {{ document.title | title }} -- {{ document.text | truncate(20, true) }}
{% else %}
(no context)
{% endfor %}

{% for message in messages if message.role != 'system' %}
{{ message.role | capitalize }}: {{ message.content }}

{% endfor %}
{% if add_generation_prompt %}Assistant:{% endif %}
""",
    "turns", "documents", tokenizer="llama",
)  # fmt: skip

style(
    "tulu",
    r"""
{% for m in messages %}
{% if m['role'] == 'assistant' %}
<|assistant|>
{% generation %}
{{ m['content'] ~ eos_token }}
{% endgeneration %}
{% else %}
<|{{ m['role'] }}|>
{{ m['content'] }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}
""",
    "turns", "closed", "prefill", tokenizer="llama",
)  # fmt: skip

style(
    "eurollm",
    r"""
{%- set roles = namespace(last=none, count=dict()) -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == roles.last -%}{{ raise_exception('Twice in a row: ' ~ message.role) }}{%- endif -%}
    {%- set roles.last = message.role -%}
    {%- set roles.count = dict(roles.count, **{message.role: roles.count.get(message.role, 0) + 1}) -%}
    {{- '<|im_start|>' ~ message.role ~ '#' ~ roles.count[message.role] ~ '\n' ~ message.content ~ '<|im_end|>\n' -}}
{%- endfor -%}
{{- roles.count -}}
""",
    "turns", "alternation", tokenizer="llama",
)  # fmt: skip

style(
    "salamandra",
    r"""
{%- set day = date_string if date_string is defined else strftime_now('%Y-%m-%d') -%}
{%- set talk = messages if messages[0].role == 'system' else [{'role': 'system', 'content': 'Today is ' ~ day ~ '.'}] + messages -%}
{%- for m in talk -%}
    {%- if loop.index0 and m.role not in ('user', 'assistant') -%}{{ raise_exception('Only user and assistant.') }}{%- endif -%}
    <|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
""",
    "user", ("user", {"date_string": "2001-02-03"}), "turns", "late_system",
)  # fmt: skip

style(
    "teuken",
    {
        "DE": r"""{{ 'System: ' ~ system_text | default('Ein Gespräch.') ~ '\n' }}{% for message in messages %}{{ message.role[0] | upper ~ message.role[1:] ~ ': ' ~ message.content ~ '\n' }}{% endfor %}{{ 'Assistent: ' if add_generation_prompt }}""",
        "EN": r"""{% for message in messages %}{{ message.role | title ~ ': ' ~ message.content ~ '\n' }}{% endfor %}{{ 'Assistant: ' if add_generation_prompt }}""",
    },
    "user", "tools",
)  # fmt: skip

style(
    "nuextract",
    r"""
{%- set template = template | default({'name': 'string'}) -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{%- if loop.first and message.role == 'user' %}

# Template:
{{ template if template is string else template | tojson(indent=2, sort_keys=true) }}
{% for example in examples | default([]) %}
# Example {{ loop.index }}/{{ loop.length }}:
{{ example.input | indent(2, true) }} => {{ example.output | tojson(separators=(',', ':')) }}
{% endfor %}
# Context:
{% endif %}
{{ message.content | trim }} <|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant{% endif %}
""",
    "user", ("closed", {"template": {"b": [1, {"d": None, "c": True}], "a": "date"}, "examples": [{"input": "x\ny", "output": {"a": 1}}, {"input": "", "output": []}]}),
)  # fmt: skip

style(
    "prometheus",
    r"""
{%- macro rubric(criteria, scores) -%}
[{{ criteria }}]
{% for score in scores | sort(attribute='score', reverse=true) %}
Score {{ score.score }}: {{ score.text | wordwrap(24) | indent(8) }}
{% endfor %}
{%- endmacro -%}
{% filter trim %}
{% for role, group in messages | groupby('role') %}
## {{ role }} ({{ group | length }})
{% for m in group %}
- {{ m.content | replace('\n', ' ') }}
{% endfor %}
{% endfor %}
{{ rubric('Is it true?', scores) }}
{% endfilter %}
""",
    ("turns", {"scores": [{"score": 1, "text": "All of it is wrong, and it is rude as well."}, {"score": 5, "text": "True."}]}),
    ("turns", {"scores": []}), "turns",
)  # fmt: skip
