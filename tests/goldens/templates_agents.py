"""More chat templates for `templates.py`: families that call tools and think, and odd ones. See `templates_models.py`."""

from __future__ import annotations

from templates_models import style

style(
    "gpt-oss",
    r"""
{#- How a JSON schema looks as a type of TypeScript. #}
{%- macro ts(schema) -%}
    {%- set nullable = " | null" if schema.nullable else "" -%}
    {%- if schema.oneOf -%}
        {%- set kinds = schema.oneOf | map(attribute="type") | unique | list -%}
        {%- if "object" in kinds and schema.oneOf|length > 1 -%}
            any
        {%- else -%}
            {%- for option in schema.oneOf -%}
                {{- ts(option) }}{{ " // " + option.description if option.description }}
                {%- if option.default is defined %}{{ " // default: " + option.default|tojson }}{% endif -%}
                {%- if not loop.last %}{{ " | " }}{% endif -%}
            {%- endfor -%}
        {%- endif -%}
    {%- elif schema.type == "array" -%}
        {%- set inner = ts(schema['items']) if schema['items'] else "any" -%}
        {{- ("any" if inner|length > 50 else inner) ~ "[]" ~ nullable }}
    {%- elif schema.type is iterable and schema.type is not string and schema.type is not mapping and schema.type[0] is defined -%}
        {{- schema.type | join(" | ") }}
    {%- elif schema.type == "string" and schema.enum -%}
        {{- '"' + schema.enum|join('" | "') + '"' -}}
    {%- elif schema.type in ("string", "boolean") -%}
        {{- schema.type ~ nullable }}
    {%- elif schema.type in ["number", "integer"] -%}
        {{- "number" }}
    {%- elif schema.type == "object" and schema.properties -%}
        {{- "{\n" }}
        {%- for key, inner in schema.properties.items() -%}
            {{- key ~ ("" if key in (schema.required or []) else "?") ~ ": " }}
            {{ ts(inner) }}
            {%- if not loop.last -%}{{-", " }}{%- endif -%}
        {%- endfor -%}
        {{- "}" }}
    {%- else -%}
        {{- "object" if schema.type == "object" else "any" }}
    {%- endif -%}
{%- endmacro -%}

{%- macro declare(space, entries) -%}
    {{- "## " + space + "\n\nnamespace " + space + " {\n\n" }}
    {%- for f in entries | map(attribute="function") %}
        {{- "// " + f.description + "\ntype " + f.name + " = " }}
        {%- for key, spec in f.parameters.properties | items %}
            {{- "(_: {\n" if loop.first }}
            {{- "// " + spec.description + "\n" if spec.description }}
            {{- key ~ ("?: " if key not in (f.parameters.required or []) else ": ") ~ ts(spec) }}
            {%- if spec.default is defined %}
                {{- ", // default: " ~ (spec.default if spec.enum else spec.default|tojson) }}
            {%- endif %}
            {{- ",\n" ~ ("})" if loop.last) }}
        {%- else %}
            {{- "()" }}
        {%- endfor %}
        {{- " => any;\n\n" }}
    {%- endfor %}
    {{- "} // namespace " + space }}
{%- endmacro -%}

{%- macro system_text() -%}
    {%- if model_identity is not defined %}{%- set model_identity = "You are a model with channels." %}{% endif %}
    {%- if reasoning_effort is not defined %}{%- set reasoning_effort = "medium" %}{% endif %}
    {{- model_identity + "\nToday: " + strftime_now("%Y-%m-%d") + "\n\nEffort: " + reasoning_effort }}
    {%- for name, words in [("browser", "Looks things up."), ("python", "Runs code.")] if name in (builtin_tools or []) %}
        {{- "\n\n# Tools" if loop.first }}{{ "\n\n## %s\n\n// %s" % (name, words) }}
    {%- endfor %}
    {{- "\n\n# Channels: analysis, commentary, final." ~ ("\nCalls go to commentary: 'functions'." if tools) }}
{%- endmacro -%}

{{- "<|start|>system<|message|>" ~ system_text() ~ "<|end|>" }}
{%- set wishes = messages[0].content if messages[0].role in ["developer", "system"] else "" %}
{%- if wishes or tools %}
    {{- "<|start|>developer<|message|>" }}
    {{- "# Instructions\n\n" ~ wishes ~ "\n\n" if wishes }}
    {{- "# Tools\n\n" ~ declare("functions", tools) if tools }}
    {{- "<|end|>" }}
{%- endif %}

{%- set called = namespace(name=none) %}
{%- for turn in messages if turn.role not in ["developer", "system"] -%}
    {%- if turn.role == 'user' -%}
        {{- "<|start|>user<|message|>" + turn.content + "<|end|>" }}
    {%- elif turn.role == 'tool' -%}
        {%- if called.name is none %}{{- raise_exception("A result without a call!") }}{% endif %}
        {{- "<|start|>functions." ~ called.name ~ " to=assistant<|channel|>commentary<|message|>" ~ turn.content|tojson ~ "<|end|>" }}
    {%- elif "tool_calls" in turn -%}
        {%- set answered = namespace(yet=false) %}
        {%- for later in messages[messages.index(turn) + 1:] if later.role == 'assistant' and "tool_calls" not in later %}
            {%- set answered.yet = true %}
        {%- endfor %}
        {%- if turn.content and turn.thinking %}
            {{- raise_exception("Both content and thinking beside a call!") }}
        {%- elif (turn.content or turn.thinking) and not answered.yet %}
            {{- "<|start|>assistant<|channel|>analysis<|message|>" + (turn.content or turn.thinking) + "<|end|>" }}
        {%- endif %}
        {%- set one = turn.tool_calls[0].function or turn.tool_calls[0] %}
        {%- set called.name = one.name %}
        {{- "<|start|>assistant to=functions." ~ one.name ~ "<|channel|>commentary " ~ one.content_type|default("json") ~ "<|message|>" }}
        {{- one.arguments|tojson }}{{ "<|call|>" }}
    {%- else -%}
        {%- if "<|channel|>" in turn.content %}
            {{- raise_exception("Channels belong into 'thinking' and 'content'.") }}
        {%- endif %}
        {%- set final = loop.last and not add_generation_prompt %}
        {%- if final and "thinking" in turn %}
            {{- "<|start|>assistant<|channel|>analysis<|message|>" + turn.thinking + "<|end|>" }}
        {%- endif %}
        {{- "<|start|>assistant<|channel|>final<|message|>" ~ turn.content ~ ("<|return|>" if final else "<|end|>") }}
        {%- set called.name = none %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}
""",
    "user", "turns", "developer", "tools", "tools_rich", "calls", "reasoning_calls", "closed_reasoning", "reasoning",
    ("user", {"reasoning_effort": "high", "builtin_tools": ["browser", "python"], "model_identity": "You are a test."}),
    "prefill_reasoning", "result_alone",
)  # fmt: skip

style(
    "functionary",
    r"""
{# version=own #}
{% set head = '<|start_header_id|>{role}<|end_header_id|>\n\n' %}
{% for m in messages %}
{{ head.format(role=m['role']) -}}
{% if m['role'] != 'assistant' %}
{{ m['content'] -}}
{% else %}
{% if m['content'] is not none %}
{{ '>>>all\n' + m['content'] -}}
{% endif %}
{% for one in m['tool_calls'] or [] %}
{{ '>>>' + one['function']['name'] + '\n' + one['function']['arguments'] -}}
{% endfor %}
{% endif %}
{{ '<|eot_id|>' -}}
{% endfor %}
{{ head.format(role='assistant') ~ '>>>' if add_generation_prompt }}
""",
    "turns", "calls_text", "parallel_text", "calls_with_content", tokenizer="llama3",
)  # fmt: skip

style(
    "firefunction",
    r"""
{%- set known = ['SYSTEM', 'USER', 'ASSISTANT', 'TOOL'] -%}
{%- set odd_ones = messages | map(attribute='role') | map('upper') | reject('in', known) | unique | join(', ') -%}
{%- if odd_ones -%}{{ raise_exception(odd_ones ~ ': not among ' ~ known | join('/')) }}{%- endif -%}
{%- set ns = namespace(talk=messages) -%}
{%- if messages[0].role | upper != known | first -%}
    {%- set ns.talk = [{'role': 'system', 'content': datetime | default(strftime_now('%b %d %Y, %H:%M:%S'))}] + messages -%}
{%- endif -%}
{{ bos_token }}
{%- for turn in ns.talk -%}
    {%- set ns.words = turn.content | trim -%}
    {%- if loop.first and tools -%}
        {%- set ns.words = ns.words ~ '\n' ~ tools | map(attribute='function') | list | tojson(indent=4) -%}
    {%- endif -%}
    {%- if turn.tool_calls -%}
        {%- set ns.words = ns.words ~ ' functools' ~ turn.tool_calls | map(attribute='function') | list | tojson -%}
    {%- endif -%}
    {{- '<|start_header_id|>' ~ turn.role | lower ~ '<|end_header_id|>\n\n' ~ ns.words ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{% endif -%}
""",
    "user", ("user", {"datetime": "now"}), "parallel", "developer", tokenizer="llama3",
)  # fmt: skip

style(
    "xlam",
    r"""
{{- bos_token }}
{%- set lead = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first | default('', true) %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' ~ lead ~ '\n' }}
{%- for entry in tools or [] %}
    {%- set f = entry.function | default(entry) %}
    {{- {'name': f.name, 'description': f.description, 'parameters': f.parameters.properties} | tojson(indent=4) ~ '\n\n' }}
{%- endfor %}
{{- '<|eot_id|>' }}
{%- for turn in messages if turn.role != 'system' %}
    {%- set role = 'ipython' if turn.role == 'tool' else turn.role %}
    {{- '<|start_header_id|>%s<|end_header_id|>\n\n' | format(role) }}
    {%- if turn.tool_calls is defined %}
        {{- turn.tool_calls | map(attribute='function') | map('tojson') | join(', ') }}
    {%- elif turn.content is mapping or turn.content is iterable and turn.content is not string %}
        {{- turn.content | tojson }}
    {%- else %}
        {{- turn.content | trim }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}
""",
    "turns", "calls_text", "parallel", tokenizer="llama3",
)  # fmt: skip

style(
    "jamba",
    r"""
{# names #}
{% set open = bom_str or "<|bom|>" %}
{% set close = eom_str or "<|eom|>" %}
{% set count = namespace(turns=0, spoken=False) %}
{##}
{# pieces #}
{% macro frame(role) -%}
{{ open + '<|' + role + '|> ' }}{{ caller() }}{{ close }}
{%- endmacro %}
{% macro shelf() %}
{% for d in documents or [] %}
{% for key, value in d.items() if key != 'text' %}
| {{ key | title }}: {{ value | string }}
{% endfor %}
{{ d.text }}
{% else %}
(no documents)
{% endfor %}
{% if knobs is mapping %}{% for key, value in knobs | dictsort if value is not none %}{{ key ~ '=' ~ (value | lower if value is boolean else value) }};{% endfor %}{% endif %}
{% endmacro %}
{# the talk #}
{{ bos_token -}}
{% if messages[0].role != "system" %}{% call frame('system') %}{{ shelf() }}{% endcall %}{% endif %}
{% for turn in messages %}
{% set count.turns = count.turns + 1 %}
{% set body %}
{% for one in turn.tool_calls or [] %}
{"name": "{{ one.function.name }}", "arguments": {{ one.function.arguments if one.function.arguments is string else one.function.arguments | tojson }}}
{% endfor %}
{% endset %}
{% call frame(turn.role) %}{{ '<tool_calls>' ~ body.rstrip() ~ '</tool_calls>' if turn.tool_calls else turn.content }}{{ '\n' ~ shelf() if loop.first and turn.role == 'system' }}{% endcall %}
{% endfor %}
{% if add_generation_prompt and (not messages or messages[-1].role != 'assistant') %}{{ open + '<|assistant|>' }}{% endif %}
""",
    "turns", "documents", "parallel", "calls_text", ("user", {"knobs": {"is_set": True, "n": 2, "none": None}, "bom_str": "<b>"}),
    tokenizer="llama",
)  # fmt: skip

style(
    "nemotron-mini",
    r"""
{% set names = {'user': 'User', 'assistant': 'Assistant', 'model': 'Assistant', 'tool': 'Tool'} %}
<extra_id_0>System{% for m in messages if m['role'] == 'system' %}{{ '\n' ~ m['content'].strip() }}{% endfor %}{% for tool in tools or [] %}{{ '\n<tool> ' ~ tool|tojson ~ ' </tool>' }}{% endfor %}


{% for m in messages if m['role'] in names %}
<extra_id_1>{{ names[m['role']] }}
{% if m['content'] %}
{{ m['content'].strip() }}
{% endif %}
{% for one in m['tool_calls'] or [] %}
<toolcall> {{ one['function']|tojson }} </toolcall>
{% endfor %}
{% endfor %}
{% if add_generation_prompt %}
<extra_id_1>Assistant
{%+ endif %}
""",
    "turns", "tools", "calls", "padded",
)  # fmt: skip

style(
    "nemotron-nano-2",
    r"""
{%- set ns = namespace(think=true, lead='') -%}
{%- for m in messages if m['role'] in ['system', 'user'] -%}
  {%- set ns.think = true if '/think' in m['content'] else false if '/no_think' in m['content'] else ns.think -%}
{%- endfor -%}
{%- macro clean(text) -%}{{ text.replace('/no_think', '').replace('/think', '').strip() }}{%- endmacro -%}
{{- bos_token ~ '<SPECIAL_10>System\n' -}}
{%- if messages[0]['role'] == 'system' -%}{{- clean(messages[0]['content']) -}}{%- set messages = messages[1:] -%}{%- endif -%}
{%- for entry in tools or [] -%}
  {{- '\n\n<AVAILABLE_TOOLS>[' if loop.first else ', ' -}}{{- (entry.function or entry) | tojson -}}{{- ']</AVAILABLE_TOOLS>' if loop.last -}}
{%- endfor -%}
{{- '\n' -}}
{%- if messages[-1]['role'] == 'assistant' -%}
  {%- set ns.begun = messages[-1]['content'].strip() -%}
  {%- set messages = messages[:-1] -%}
{%- endif -%}
{%- for m in messages -%}
  {%- if m['role'] == 'tool' -%}
    {{- ', ' if loop.previtem.role == 'tool' else '<SPECIAL_11>User\n<TOOL_RESPONSE>[' -}}
    {{- m['content'] -}}
    {{- ']</TOOL_RESPONSE>\n' if not loop.nextitem or loop.nextitem.role != 'tool' -}}
  {%- elif m['role'] == 'user' -%}
    {{- '<SPECIAL_11>User\n' ~ clean(m['content']) ~ '\n' -}}
  {%- else -%}
    {%- set words = m['content'] -%}
    {%- if '</think>' in words -%}{%- set words = words.split('</think>')[1] %}{%- endif -%}
    {{- '<SPECIAL_11>Assistant\n' + words.strip() -}}
    {%- for one in m.tool_calls or [] -%}
      {%- set f = one.function if one.function is defined else one -%}
      {{- '<TOOLCALL>{"name": "' ~ f.name ~ '", "arguments": ' -}}
      {%- if f.arguments is string -%}{{- f.arguments -}}{%- else -%}{{- f.arguments | tojson -}}{%- endif -%}
      {{- '}</TOOLCALL>' -}}
    {%- endfor -%}
    {{- '\n<SPECIAL_12>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt or ns.begun is defined and ns.begun != '' -%}
  {{- '<SPECIAL_11>Assistant\n' ~ ('<think>\n' if ns.think else '<think></think>') ~ ns.begun -}}
{%- endif -%}
""",
    "turns", "tools_bare", "override", "thinking", "calls_with_content", "prefill", "closed", tokenizer="llama",
)  # fmt: skip

style(
    "nemotron-super",
    r"""
{{- bos_token }}
{%- set found = messages | selectattr('role', 'eq', 'system') | list %}
{%- for m in found or [{'role': 'system', 'content': 'detailed thinking on'}] + messages %}
    {%- if found and loop.first %}{%- set list = messages %}{%- else %}{%- set list = [] %}{%- endif %}
    {%- for n in list or [m] if not found or list %}
        {{- '<|start_header_id|>' ~ n.role ~ '<|end_header_id|>\n\n' }}
        {{- n.content | trim if n.role != 'assistant' else n.content.split('</think>')[-1].lstrip() }}
        {{- '<|eot_id|>' }}
    {%- endfor %}
{%- endfor %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}
""",
    "user", "turns", "thinking", tokenizer="llama3",
)  # fmt: skip

style(
    "nemotron-3",
    r"""
{% macro scalar(it) %}{{ it | tojson | safe if it is mapping or (it is sequence and it is not string) else it | string }}{% endmacro %}
{% macro rest_of(fields, shown) %}
    {%- for key in fields if key not in shown %}{{ '\n<' ~ key ~ '>' ~ scalar(fields[key]) ~ '</' ~ key ~ '>' }}{% endfor %}
{% endmacro %}
{%- set enable_thinking = enable_thinking if enable_thinking is defined else True %}
{%- set shorten = truncate_history_thinking if truncate_history_thinking is defined else True %}
{%- set last = namespace(asked=-1) %}
{%- for m in messages %}{%- if m["role"] == "user" %}{%- set last.asked = loop.index0 %}{%- endif %}{%- endfor %}
{{- "<|im_start|>system\n" ~ (messages[0]["content"] if messages[0]["role"] == "system" else "") }}
{%- for f in tools | map(attribute='function') if tools is iterable and tools | length > 0 %}
    {{- '\n<function>\n<name>' ~ f.name ~ '</name>' }}
    {%- for label, spec in f.parameters.properties|items %}
        {{- '\n<parameter>\n<name>' ~ label ~ '</name>' ~ ('\n<enum>' ~ spec.enum | tojson ~ '</enum>' if spec.enum is defined) }}
        {{- rest_of(spec, ['name', 'enum']) ~ '\n</parameter>' }}
    {%- endfor %}
    {{- rest_of(f, ['name', 'parameters', 'description']) ~ '\n</function>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- for m in messages if m.role != 'system' %}
    {%- if m.role == "tool" %}
        {{- '<|im_start|>user\n' if loop.previtem and loop.previtem.role != "tool" }}
        {{- '<tool_response>\n' ~ m.content ~ '\n</tool_response>\n' }}
        {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != "tool" }}
        {%- continue %}
    {%- endif %}
    {%- set words = m.content | default('', true) | string %}
    {%- if m.role == "assistant" %}
        {%- if m.reasoning_content is string and m.reasoning_content | trim | length > 0 %}
            {%- set words = "<think>\n" ~ m.reasoning_content ~ "\n</think>\n" ~ words %}
        {%- elif '</think>' not in words %}
            {%- set words = "<think></think>" ~ words %}
        {%- endif %}
        {%- if shorten and messages.index(m) < last.asked %}
            {%- set words = (words.split('<think>') | first ~ '<think></think>' ~ words.split('</think>') | last) | trim %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_start|>' ~ m.role ~ '\n' ~ words }}
    {%- for one in m.tool_calls or [] %}
        {%- set one = one.function or one %}
        {{- '\n<tool_call>\n<function=' ~ one.name ~ '>\n' }}
        {%- for key, value in one.arguments|items %}{{ '<parameter=' ~ key ~ '>\n' ~ scalar(value) ~ '\n</parameter>\n' }}{% endfor %}
        {{- '</function>\n</tool_call>\n' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n<think>' ~ ('\n' if enable_thinking else '</think>') }}
{%- endif %}
""",
    "turns", ("user", {"enable_thinking": False}), "tools_rich", "parallel", "calls_text", "reasoning", "thinking",
    ("reasoning", {"truncate_history_thinking": False}), "reasoning_calls", "parts",
)  # fmt: skip

style(
    "chatglm3",
    r"""[gMASK]sop{% for m in messages %}<|{{ m['role'] }}|>
 {{ m['content'] }}{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}""",
    "turns", "padded",
)  # fmt: skip

style(
    "glm4",
    r"""[gMASK]<sop>{% if tools is not none -%}
<|system|>
你会用工具。{{ '（代码）' if tools | selectattr('type', 'equalto', 'code_interpreter') | list }}
{% for entry in tools if entry['type'] != 'code_interpreter' -%}
{% set f = entry.function if entry.get('function') else entry %}
## {{ f.name }}

{{ f | tojson(indent=4, ensure_ascii=False) }}
请用 Json 格式。
{%- endfor %}{% endif %}{% for m in messages -%}
{% set name = {'tool': 'observation'}.get(m['role'], m['role']) -%}
{% if m['content'] and m.get('metadata', '') != 'skip' %}<|{{ name }}|>{{ m.get('metadata', '') }}
{{ m['content'] }}{% endif -%}
{% for one in m.get('tool_calls', []) %}<|assistant|>{{ one['function']['name'] }}
{{ one['function']['arguments'] | tojson(ensure_ascii=False) }}{% endfor -%}
{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}""",
    "turns", "tools", "code_tool", "calls", "parallel",
)  # fmt: skip

style(
    "glm45",
    r"""
[gMASK]<sop>
{%- for entry in tools or [] -%}
{{ '<|system|>\n<tools>' if loop.first }}
{{ entry | tojson(ensure_ascii=False) }}
{{ '</tools>' if loop.last }}
{%- endfor -%}
{%- macro plain(it) -%}
    {%- if it is iterable and it is not string and it is not mapping -%}
        {%- for piece in it -%}{{- piece if piece is string else piece.text if piece is mapping and piece.type == 'text' -}}{%- endfor -%}
    {%- else -%}
        {{- it -}}
    {%- endif -%}
{%- endmacro -%}
{%- set quiet = enable_thinking is defined and not enable_thinking -%}
{%- set last = namespace(asked=-1) %}
{%- for m in messages if m.role == 'user' %}{% set last.asked = messages.index(m) -%}{%- endfor %}
{% for m in messages %}
{%- set words = plain(m.content) -%}
{%- if m.role == 'tool' -%}
{%- if loop.first or loop.previtem.role != 'tool' -%}<|observation|>{%- endif -%}
{%- for piece in ([words] if m.content is string else m.content) %}

<tool_response>
{{ piece.output if piece is mapping and piece.output is defined else piece }}
</tool_response>
{%- endfor -%}
{%- elif m.role == 'assistant' -%}
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' -%}
{%- if '</think>' in words and not thought -%}
    {%- set thought, words = words.split('</think>')[0].split('<think>')[-1], words.split('</think>')[-1] -%}
{%- endif -%}
<|assistant|>{{ '\n<think>' ~ (thought.strip() if loop.index0 > last.asked else '') ~ '</think>' }}
{{- '\n' + words.strip() if words.strip() -}}
{%- for one in m.tool_calls or [] %}
{% set one = one.function or one %}

<tool_call>{{ one.name }}
{% for key, value in one.arguments.items() %}
<arg_key>{{ key }}</arg_key>
<arg_value>{{ value if value is string else value | tojson(ensure_ascii=False) }}</arg_value>
{% endfor %}
</tool_call>
{%- endfor -%}
{%- else -%}
<|{{ m.role }}|>
{{ words }}{{ '/nothink' if m.role == 'user' and quiet and not words.endswith("/nothink") }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\n<think></think>' if quiet -}}
{%- endif -%}
""",
    "turns", ("turns", {"enable_thinking": False}), "tools", "parallel", "calls_text", "reasoning_calls", "thinking",
    "system_parts", "tool_parts",
)  # fmt: skip

style(
    "minicpm",
    r"""{% for m in messages %}{{ '<用户>%s<AI>' % m['content'].strip() if m['role'] == 'user' else m['content'].strip() }}{% endfor %}""",
    "turns", "padded",
)  # fmt: skip

style(
    "minicpm3",
    r"""
{%- macro hint(key, schema) %}
    {%- set plain = {'string': 'str', 'number': 'float', 'integer': 'int', 'boolean': 'bool', 'null': 'None'} %}
    {%- if schema.enum or schema.properties %}{{ key|title }}
    {%- elif schema.type is string and schema.type in plain %}{{ plain[schema.type] }}
    {%- elif schema.type == 'array' %}{{ 'List[%s]' % hint(key, schema['items']) }}
    {%- elif schema.type == 'object' %}{{ 'Dict[str, %s]' % hint(key, schema.additionalProperties or {}) }}
    {%- elif schema.type is iterable and schema.type %}
        {{- 'Union[' }}{% for t in schema.type %}{{ hint(key, {'type': t}) ~ (', ' if not loop.last else ']') }}{% endfor %}
    {%- else %}Any
    {%- endif %}
{%- endmacro %}
{%- macro members(schema, gap) %}
    {%- set out = namespace(text=caller()) %}
    {%- for key, spec in schema.properties|items %}
        {%- if spec.enum %}
            {{- 'class %s(Enum):\n' % key|title }}
            {%- for option in spec.enum %}{{ '    enum_' + loop.index0|string + ' = ' + option|tojson + '\n' }}{% endfor %}
        {%- elif spec.type == 'object' and spec.properties %}
            {%- call members(spec, '    ') %}{{ 'class %s(BaseModel):\n' % key|title }}{% endcall %}
        {%- endif %}
        {%- set needed = key in (schema.required or []) %}
        {%- set given = spec.default|tojson if spec.default is string else spec.default|string if spec.default is defined else 'None' %}
        {%- set about = ['default=' ~ given] if not needed else [] %}
        {%- set about = about + ['description=' ~ spec.description|tojson] if spec.description else about %}
        {%- set typed = hint(key, spec) if needed else 'Optional[' ~ hint(key, spec) ~ ']' %}
        {%- set out.text = out.text ~ gap ~ key ~ ': ' ~ typed ~ (' = Field(' ~ about | join(', ') ~ ')' if about) ~ '\n' %}
    {%- endfor %}
    {{- out.text }}
{%- endmacro %}
{%- set lead = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}
{%- if lead or tools %}
    {{- '<|im_start|>system\n' + lead }}
    {%- for f in tools | map(attribute='function') if tools %}
        {{- '\n```python\n' if loop.first }}
        {%- call members(f.parameters, '        ') %}{{ '\ndef ' + f.name + '(\n' }}{% endcall %}
        {{- '): ' ~ f.description|tojson ~ '\n' }}
        {{- '```' if loop.last }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for m in messages if m['role'] != 'system' %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- for one in m.tool_calls or [] %}
        {{- one.function.name + '(' }}{% for k, v in one.function.arguments|items %}{{ k + '=' + v|tojson }}{{ ',' if not loop.last }}{% endfor %}{{ ')\n' }}
    {%- endfor %}
    {{- m.content | default('') ~ '<|im_end|>\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\n' if add_generation_prompt }}
""",
    "turns", "tools", "tools_rich", "parallel",
)  # fmt: skip

style(
    "kimi-k2",
    r"""
{% macro words(m) -%}
    {%- set found = m.get('content') -%}
    {%- if found is string -%}{{ found }}
    {%- else -%}
      {%- for piece in found or [] -%}
        {% if piece['type'] == 'text' %}{{ piece['text'] }}{% else %}<|media_start|>image<|media_content|><|media_pad|><|media_end|>{% endif -%}
      {%- endfor -%}
    {%- endif -%}
{%- endmacro %}
{%- if tools -%}
  <|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>
{%- endif -%}
{%- if messages[0]['role'] != 'system' %}<|im_system|>system<|im_middle|>You write well.<|im_end|>{% endif -%}
{%- for m in messages -%}
  {%- set kind = m['role'] if m['role'] in ('user', 'assistant') else 'system' -%}
  <|im_{{ kind }}|>{{ m.get('name') or m['role'] }}<|im_middle|>
  {%- if m['role'] == 'tool' -%}
    ## Return of {{ m.tool_call_id }}
{% endif -%}
  {{ words(m) }}
  {%- for one in m.get('tool_calls') or [] -%}
    {%- if loop.first %}<|tool_calls_section_begin|>{% endif -%}
    <|tool_call_begin|>{{ 'functions.' ~ one['function']['name'] ~ ':' ~ loop.index0 }}<|tool_call_argument_begin|>
    {%- set given = one['function']['arguments'] %}{{ given if given is string else given | tojson -}}
    <|tool_call_end|>
    {%- if loop.last %}<|tool_calls_section_end|>{% endif -%}
  {%- endfor -%}
  <|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
  <|im_assistant|>assistant<|im_middle|>
{%- endif -%}
""",
    "user", "turns", "parallel", "null", "parts", "named",
)  # fmt: skip

style(
    "kimi-k3",
    r"""
{%- macro tag(name, pairs=[]) -%}
<|open|>{{ name }}
{%- for key, value in pairs if value is not none %} {{ key }}="{{ value|string|replace('&', '&amp;')|replace('"', '&quot;') }}"{%- endfor -%}
<|sep|>
{%- endmacro -%}
{%- macro end(name) -%}{{- '<|close|>%s<|sep|>' % name -}}{%- endmacro -%}
{%- macro kind(it) -%}
{{- 'boolean' if it is boolean else 'null' if it is none else 'number' if it is number else 'string' if it is string else 'object' if it is mapping else 'array' -}}
{%- endmacro -%}
{%- macro ordered(it) -%}
{%- if it is mapping -%}
{ {%- for key, inner in it|dictsort -%}{{ ',' if loop.index0 }}{{ key|tojson }}:{{ ordered(inner) }}{%- endfor -%} }
{%- elif it is sequence and it is not string -%}
[{%- for inner in it -%}{{ ordered(inner) }}{{ ',' if not loop.last }}{%- endfor -%}]
{%- else -%}
{{ it|tojson(ensure_ascii=true) }}
{%- endif -%}
{%- endmacro -%}
{%- if effort is undefined -%}{%- set effort = 'max' -%}
{%- elif effort is not none and effort not in ['low', 'max'] -%}{{- raise_exception('No such effort: ' + effort|string) -}}{%- endif -%}
{%- set state = namespace(calls=[], at=0) -%}
{%- if tools -%}{{- tag('message', [('role', 'system'), ('type', 'tools')]) ~ ordered(tools) ~ end('message') -}}{%- endif -%}
{%- for m in messages -%}
    {%- set is_result = m.role == 'tool' -%}
    {%- if is_result -%}
        {%- set state.at = state.at + 1 -%}
        {%- set one = state.calls[state.at - 1] if state.at <= state.calls|length else {} -%}
        {{- tag('message', [('role', 'tool'), ('tool', m.get('name', one.function.name)), ('index', state.at)]) -}}
    {%- else -%}
        {%- set state.at = 0 -%}
        {{- tag('message', [('role', m.role), ('name', m.get('name') or none)]) -}}
    {%- endif -%}
    {%- if m.role == 'assistant' -%}
        {%- set state.calls = m.get('tool_calls', []) -%}
        {{- tag('think') ~ (m.get('reasoning_content') or m.get('reasoning') or '') ~ end('think') -}}
    {%- endif -%}
    {{- m.content if m.content is string -}}
    {%- for one in m.get('tool_calls') or [] -%}
        {%- set f = one.function if one.function is mapping else one -%}
        {{- tag('call', [('tool', f.name), ('index', loop.index)]) -}}
        {%- if f.arguments is mapping -%}
            {%- for key, it in f.arguments.items() -%}
                {{- tag('argument', [('key', key), ('type', kind(it))]) ~ (it if it is string else it|tojson) ~ end('argument') -}}
            {%- endfor -%}
        {%- elif f.arguments is string and f.arguments|trim -%}{{- f.arguments -}}{%- endif -%}
        {{- end('call') -}}
    {%- endfor -%}
    {{- end('message') -}}
{%- endfor -%}
{%- if response_format is mapping and response_format.get('json_schema') is not none -%}
    {{- tag('message', [('role', 'system')]) ~ ordered(response_format.json_schema) ~ end('message') -}}
{%- endif -%}
{%- if add_generation_prompt -%}{{- tag('message', [('role', 'assistant')]) ~ tag('think' if effort is not none else 'response') -}}{%- endif -%}
""",
    "turns", "parallel", "calls_text", "reasoning_calls", "named", ("user", {"effort": None}), ("user", {"effort": 3}),
    ("user", {"response_format": {"json_schema": {"z": 1.0, "Y": [True, None], "é": "ü\u2028"}}}),
)  # fmt: skip

style(
    "minimax-m2",
    r"""
{%- set begin   = '<minimax:tool_call>'         -%}
{%- set finish  = '</minimax:tool_call>'        -%}
{#- Each turn opens and closes alike -#}
{%- macro frame(who) -%}
]~b]{{ who }}{{ '\n' ~ caller() }}[e~[
{% endmacro -%}
{%- macro flat(it) -%}
    {%- for piece in ([it] if it is string or it is mapping or it is not iterable else it) -%}
        {{ piece.text if piece is mapping and piece.text is defined else piece }}
    {%- endfor -%}
{%- endmacro -%}
{{- ']~!b[' }}
{%- call frame('system') -%}
    {{- flat(messages[0].content) if messages[0].role == 'system' else model_identity | default('You are small.') }}
    {%- if messages[0].current_date %}{{ '\nDate: ' + messages[0].current_date }}{% endif -%}
    {%- for tool in tools or [] -%}
        {{- '\n\n' ~ '# Tools\n<tools>' ~ '\n' if loop.first }}
<tool>{{ tool.function | tojson | string }}</tool>
{{- '\n' ~ '</tools>' ~ '\n' ~ begin ~ '...' ~ finish if loop.last }}
    {%- endfor -%}
{%- endcall -%}
{%- set last = namespace(asked=-1, called=none) %}
{% for m in messages %}
    {%- if m.role == 'user' %}
        {% set last.asked = loop.index0 -%}
    {%- endif %}
{%- endfor %}
{%- for m in messages if m.role != 'system' -%}
    {%- if m.role == 'tool' -%}
        {%- if last.called is none %}{{ raise_exception('A result, but nothing was called!') }}{% endif -%}
        {{- ']~b]tool' if loop.first or loop.previtem.role != 'tool' }}
        {%- for piece in ([{'output': m.content}] if m.content is string else m.content) -%}
            {{- '\n<response>' ~ (piece.output if piece.output is defined else piece.text if piece.text is defined else piece) ~ '</response>' }}
        {%- endfor -%}
        {{- '[e~[\n' if loop.last or loop.nextitem.role != 'tool' -}}
        {%- continue -%}
    {%- endif -%}
    {%- set words = flat(m.content | default('', true)) %}
    {%- set thought = m.reasoning_content | default('') %}
    {%- if not thought and '</think>' in words %}
        {%- set thought = words.split('</think>')[0].strip('\n').split('<think>') | last | trim('\n') %}
        {%- set words = (words.split('</think>') | last).strip('\n') %}
    {%- endif %}
    {%- set recent = messages.index(m) > last.asked %}
    {%- set last.called = m.tool_calls[-1].function.name if m.tool_calls else none -%}
    {%- call frame('ai' if m.role == 'assistant' else m.role) -%}
        {{- '<think>' ~ '\n' ~ thought ~ '\n' ~ '</think>' ~ '\n\n' if thought and recent }}
        {{- words }}
        {%- for one in m.tool_calls or [] -%}
            {{- '\n' ~ begin ~ '\n' if loop.first }}<invoke name="{{ one.function.name }}">
            {%- for k, v in one.function.arguments.items() %}
                {{- '\n<parameter name="' + k + '">' ~ (v | tojson(ensure_ascii=False) if v is not string else v) ~ '</parameter>' }}
            {%- endfor %}
</invoke>{{ '\n' ~ (finish if loop.last) }}
        {%- endfor -%}
    {%- endcall -%}
{%- endfor -%}
{{- ']~b]ai' ~ '\n' ~ '<think>' ~ '\n' if add_generation_prompt }}
""",
    "turns", "parallel", "reasoning_calls", "thinking", "parts", "result_alone", "tool_parts",
)  # fmt: skip

style(
    "lfm2",
    r"""
{{- bos_token -}}
{%- set ns = namespace(lead=messages[0]["content"] if messages[0]["role"] == "system" else "") -%}
{%- if tools -%}
    {%- set ns.lead = (ns.lead ~ "\nTools: <|tool_list_start|>[") | trim -%}
    {%- for entry in tools -%}
        {%- set ns.lead = ns.lead + (entry if entry is string else entry | tojson) + (", " if not loop.last else "]<|tool_list_end|>") -%}
    {%- endfor -%}
{%- endif -%}
{%- for m in ([{"role": "system", "content": ns.lead}] if ns.lead else []) + (messages | rejectattr("role", "eq", "system") | list) -%}
    {%- set words = m["content"] if m["content"] is string else m["content"] | tojson -%}
    {%- if m["role"] == "tool" -%}{%- set words = "<|tool_response_start|>" ~ words ~ "<|tool_response_end|>" -%}{%- endif -%}
    {{- "<|im_start|>%s\n%s<|im_end|>\n" | format(m["role"], words) -}}
{%- endfor -%}
{{- "<|im_start|>assistant\n" if add_generation_prompt -}}
""",
    "turns", "tools", "parts", "dict_content", "calls", tokenizer="llama",
)  # fmt: skip

style(
    "lfm25",
    r"""
{{- bos_token -}}
{%- macro shown(it) -%}
    {%- if it is none -%}None{%- elif it is mapping -%}{{ it | tojson }}{%- elif it is string -%}"{{ it }}"{%- else -%}{{ it | string }}{%- endif -%}
{%- endmacro -%}
{%- macro python(calls) -%}
    <|tool_call_start|>[
    {%- for f in calls | map(attribute="function") -%}
        {%- set bits = namespace(all=[]) -%}
        {%- for key in f.arguments -%}{%- set bits.all = bits.all + [key ~ "=" ~ shown(f.arguments[key])] -%}{%- endfor -%}
        {{ f.name ~ "(" ~ bits.all | join(", ") ~ ")" }}{{ ", " if not loop.last }}
    {%- endfor -%}
    ]<|tool_call_end|>
{%- endmacro -%}
{%- set spoken = messages | selectattr("role", "eq", "assistant") | list -%}
{%- for m in messages -%}
    {%- set words = m["content"] | default('') -%}
    {%- if m["role"] == "assistant" and m != spoken[-1] and not (keep_past_thinking | default(false)) -%}
        {%- set words = words.split("</think>")[-1] | trim -%}
    {%- endif -%}
    <|im_start|>{{ m["role"] }}
{% if m.tool_calls is defined -%}
        {%- generation -%}
        {{- python(m.tool_calls) ~ words ~ "<|im_end|>\n" -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- words + "<|im_end|>\n" -}}
    {%- endif -%}
{%- endfor -%}
{{- "<|im_start|>assistant\n" if add_generation_prompt -}}
""",
    "thinking", ("thinking", {"keep_past_thinking": True}), "parallel", "calls", tokenizer="llama",
)  # fmt: skip

style(
    "exaone4",
    r"""
{%- set heads = {
    'system': '[|system|]\n', 'user': '[|user|]\n',
    'assistant': '[|assistant|]\n', 'tool': '[|tool|]\n'
} %}
{%- set end = '[|endofturn|]\n' %}
{%- set empty = '<think>\n\n</think>\n\n' %}
{%- macro shelf() %}
    {%- for entry in tools or [] %}{{ '# Tools\n' if loop.first }}{{ '<tool>' ~ entry | tojson(ensure_ascii=False) | safe ~ '</tool>\n' }}{% endfor %}
{%- endmacro %}
{%- if tools and messages[0].role != 'system' %}{{ heads.system ~ shelf() ~ end }}{% endif %}
{%- for i in range(messages | length) %}
    {%- set m = messages[i] %}
    {%- set before, after = messages[i - 1] if i > 0 else {}, messages[i + 1] or {} %}
    {%- if heads[m.role] is not defined %}{{ raise_exception('Unknown role: ' ~ m.role) }}{% endif %}
    {%- if m.role == 'tool' %}
        {{- heads.tool if before.role != 'tool' }}{{ '<tool_result>' ~ m.content ~ '</tool_result>' }}
        {{- '\n' if after.role == 'tool' else end }}
        {%- continue %}
    {%- endif %}
    {{- heads[m.role] }}
    {%- if m.role == 'assistant' and m.content %}
        {%- set thought = m.reasoning_content or m.content.split('</think>')[0].strip()[7:].strip() if '</think>' in m.content or m.reasoning_content else none %}
        {%- if thought is not none and loop.last and skip_think is false %}{{ '<think>\n' ~ thought ~ '\n</think>\n\n' }}{% else %}{{ empty }}{% endif %}
        {{- m.content.split('</think>')[-1].strip() }}
    {%- else %}
        {{- m.content | default('') }}
    {%- endif %}
    {%- for one in m.tool_calls or [] %}
        {{- "<tool_call>" }}{"name": "{{- one.function.name }}", "arguments": {{ one.function.arguments | tojson(ensure_ascii=False) | safe }}}{{- "</tool_call>" }}
        {{- '\n' if not loop.last }}
    {%- endfor %}
    {{- '\n\n' ~ shelf() if i == 0 and m.role == 'system' and tools }}{{ end -}}
{% endfor %}
{%- if add_generation_prompt %}
    {{- heads.assistant ~ ('<think>\n' if enable_thinking is true else empty) }}
{%- endif %}
""",
    "turns", "parallel", "thinking", ("closed_reasoning", {"skip_think": False}), ("user", {"enable_thinking": True}),
    "developer", "unicode",
)  # fmt: skip

style(
    "hunyuan",
    r"""
{%- set leads = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\n\n') %}
{{- bos_token ~ (leads ~ '<｜hy_place▁holder▁no▁3｜>' if leads) }}
{%- for m in messages %}
    {%- set words = m['content'] %}
    {%- if m['role'] == 'user' %}
        {%- if words.startswith('/no_think') %}
            {%- set words = words | replace('/no_think', '', 1) %}
        {%- elif enable_thinking is defined and not enable_thinking %}
            {%- set words = '/no_think' ~ words %}
        {%- endif %}
        {{- '<｜hy_User｜>' + words }}
    {%- elif m['role'] == 'assistant' %}
        {%- set inside = words.split('<answer>')[1].split('</answer>')[0] if '<answer>' in words and '</answer>' in words else words %}
        {{- '<｜hy_Assistant｜>' ~ inside.strip() ~ eos_token }}
    {%- endif %}
{%- endfor %}
{{- '<｜hy_Assistant｜>' if add_generation_prompt is defined and add_generation_prompt }}
""",
    "turns", ("turns", {"enable_thinking": False}), "answer_tags", "late_system", tokenizer="deepseek",
)  # fmt: skip

style(
    "ernie",
    r"""
{%- set first = cls_token if cls_token is defined else "<|begin_of_sentence|>" -%}
{%- set names = {"user": "User: ", "assistant": "Assistant: "} -%}
{{- first -}}
{%- for m in messages -%}
    {{- (names[m["role"]] or "") + m["content"] -}}
    {{- eos_token | default("</s>") if m["role"] == "assistant" else "
" -}}
{%- endfor -%}
{%- if add_generation_prompt is not defined or add_generation_prompt -%}
    {{- names["assistant"] -}}
{%- endif -%}
""",
    "turns", "closed", tokenizer="extra",
)  # fmt: skip

style(
    "seed-oss",
    r"""
{# ---- words ---- #}
{%- set bos_token, eos_token = "<seed:bos>", "<seed:eos>" -%}
{# ---- how long to think ---- #}
{%- set budget = thinking_budget if thinking_budget is defined else -1 -%}
{%- set steps = {0: 0, 512: 128, 1024: 256} -%}
{%- set chosen = namespace(step = None) %}
{%- for most, step in steps | dictsort if budget <= most -%}
    {%- set chosen.step = step if chosen.step is none else chosen.step -%}
{%- endfor -%}
{%- if chosen.step is none -%}{% set chosen.step = steps[1024] %}{%- endif -%}
{%- macro py(kind) -%}{{ {"string": "str", "number": "int", "integer": "int", "boolean": "bool", "array": "list"}.get(kind | string, "Any") }}{%- endmacro -%}
{%- macro json(it) -%}{{ it | tojson(ensure_ascii=False, separators=(", ", ": ")) }}{%- endmacro -%}
{%- for m in messages if m.role in ["system", "developer"] %}{{ bos_token + m.role + "\n" + m.content + eos_token }}{%- endfor %}
{%- for tool in tools or [] if tool.type == "function" %}
{{ bos_token ~ "system\ndef " ~ tool.function.name }}(
{%- for name, spec in tool.function.parameters.properties.items() | rejectattr(0, "none") -%}
{{ name }}: {{ py(spec.type) }}{{ " = " ~ json(spec.default) if "default" in spec }}{%- if not loop.last -%}, {% endif -%}
{%- endfor -%}
){{ eos_token }}
{%- endfor %}
{% if budget != -1 %}{{ bos_token ~ "system\nBudget: " ~ budget ~ "/" ~ chosen.step ~ eos_token }}{% endif %}
{%- for m in messages if m.role not in ["system", "developer"] -%}
{% set thought = m.reasoning_content %}
{{ bos_token + m["role"] }}
{%- if thought is defined and thought is string and thought | trim | length > 0 %}
{{ "\n<seed:think>" ~ thought.strip() ~ "</seed:think>" }}
{%- endif %}
{%- if m.content is string and m.content | trim | length > 0 %}
{{ "\n" ~ m.content | trim }}
{%- endif %}
{%- for f in m.tool_calls | map(attribute="function") if m.tool_calls is defined -%}
{{ "\n<seed:tool_call>" ~ f.name }}
{%- for key, it in f.arguments | items -%}{{ "\n<parameter=" ~ key ~ ">" ~ (it if it is string else json(it)) ~ "</parameter>" }}{%- endfor -%}
{{ "\n</seed:tool_call>" }}
{%- endfor -%}
{{ eos_token }}
{%- endfor -%}
{%- if add_generation_prompt %}
{{ bos_token ~ "assistant\n" }}{{ "<seed:think><seed:cot_budget_reflect>0</seed:cot_budget_reflect>" if budget == 0 }}
{%- endif %}
""",
    "turns", ("user", {"thinking_budget": 0}), ("user", {"thinking_budget": 600}), ("user", {"thinking_budget": 5000}),
    "tools_rich", "parallel", "reasoning",
)  # fmt: skip

style(
    "apriel",
    r"""
{# -- names that may be missing -- #}
{%- set tools = tools if (tools is defined and tools) else [] -%}
{%- set bos_token = bos_token if (bos_token is defined) else '' -%}
{%- set show_ids = true -%}
{%- set shelf = '' -%}
{%- set manner -%}
    Think step by step, then answer
    after [BEGIN FINAL RESPONSE].
{%- endset -%}
{%- if tools|length > 0 -%}
    {%- set shelf -%}
        Signatures:
        {% for tool in tools %}{{ tool|string }}{% endfor %}

        End of signatures.
    {%- endset -%}
{%- endif -%}
{%- macro words(m) -%}
    {%- set found = m.get('content', '') -%}
    {%- if found is string -%}{{ found }}
    {%- else -%}
        {%- for piece in found -%}
            {%- if piece['type'] == 'text' -%}{{ piece['text'] }}
            {%- elif piece['type'] in ['image', 'image_url'] -%}{{ '[IMG]' }}
            {%- else -%}{{ raise_exception('Neither text nor image: ' ~ piece) }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set lead = words(messages[0]) + '\n' if messages[0]['role'] == 'system' else '' -%}
{{ bos_token + '<|begin_system|>\n' + manner + '\n' + lead + shelf + '\n' }}
{%- for m in messages if m['role'] != 'system' -%}

    {# -- one turn -- #}
    {{ '\n<|begin_' ~ m['role'] ~ '|>\n' }}
    {%- set said = words(m) -%}
    {%- if m['role'] != 'assistant' or loop.last -%}
        {{- said -}}
    {%- else -%}
        {{- said.split('[BEGIN FINAL RESPONSE]')[-1] | trim -}}
    {%- endif -%}
    {%- if loop.last -%}{%- set show_ids = false -%}{%- endif -%}
    {%- for one in m.get('tool_calls', []) -%}
        {{ '{"name": "' + one['function']['name'] + '", "arguments": ' + one['function']['arguments']|tojson }}
        {%- if show_ids == true and 'id' in one -%}
            {{ ', "id": "' + one['id'] + '"' }}
        {%- endif -%}
        {{ '}' }}
    {%- endfor -%}
    {%- set closed = training_prompt if (training_prompt is defined) else false -%}
    {%- if not loop.last or closed or m['role'] == 'tool' -%}
        {{ '\n<|end|>' }}
    {%- endif -%} 

{%- endfor -%}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}
    {{ '\n<|begin_assistant|>\nSteps:\n' }}
{%- endif -%}
""",
    "user", "turns", "tools_bare", "parallel", "parts", "system_parts", "parts_odd", "prefill", "tool_parts", tokenizer="llama",
)  # fmt: skip

style(
    "gigachat",
    r"""
{#--- schemata as types ---#}
{%- macro follow(pointer, root) -%}
	{%- set at = namespace(node=root) -%}
	{%- for step in pointer[2:].split('/') | map('replace', '~1', '/') | map('replace', '~0', '~') -%}
		{%- if at.node is mapping -%}
			{%- set at.node = at.node[step] -%}
		{%- elif at.node is sequence and at.node is not string and step == (step | int | string) -%}
			{%- set at.node = at.node[step | int] -%}
		{%- endif -%}
	{%- endfor -%}
	{{- type_of(at.node, '', root) if at.node is mapping else 'any' -}}
{%- endmacro -%}
{%- macro type_of(schema, gap="", root=none) -%}
	{%- set kinds = schema.get('type') -%}
	{%- if schema.get('$ref') is string -%}
		{{- follow(schema['$ref'], root) -}}
	{%- elif schema.get('oneOf') is sequence and schema.oneOf is not string -%}
		{%- for option in schema.oneOf -%}({{ type_of(option, gap, root) }}){{ ' | ' if not loop.last }}{%- endfor -%}
	{%- elif kinds is sequence and kinds is not string -%}
		{%- set ns = namespace(bits=[]) -%}
		{%- for kind in kinds -%}
			{%- set ns.bits = ns.bits + [type_of({'type': kind, 'enum': schema.get('enum')}, gap, root)] -%}
		{%- endfor -%}
		{{- ns.bits | join(' | ') -}}
	{%- elif kinds == 'object' or kinds is none and schema.get('properties') is mapping -%}
		{{- '{\n' -}}
		{%- for key, inner in (schema.get('properties') or {}).items() -%}
			{%- for line in inner.get('description', '').split('\n') if line.strip() -%}{{- gap ~ '// ' ~ line ~ '\n' -}}{%- endfor -%}
			{%- for extra, value in inner.items() if extra in ['minimum', 'pattern', 'minItems'] and value is not none -%}
				{{- gap ~ '// ' ~ extra ~ ': ' ~ value | tojson ~ '\n' -}}
			{%- endfor -%}
			{{- gap ~ key ~ ('' if key in schema.get('required', []) else '?') ~ ': ' ~ type_of(inner, gap ~ '  ', root) ~ ',' -}}
			{{- ' // default: ' ~ inner.default | tojson if 'default' in inner -}}
			{{- '\n' -}}
		{%- endfor -%}
		{%- if schema.get('additionalProperties') is mapping -%}{{- gap ~ '[key: string]: ' ~ type_of(schema.additionalProperties) ~ '\n' -}}{%- endif -%}
		{{- gap[:-2] ~ '}' -}}
	{%- elif kinds == 'array' -%}
		{{- '(' ~ type_of(schema.get('items') or {}, gap, root) ~ ')[]' -}}
	{%- elif schema.get('enum') -%}
		{{- schema.enum | map('tojson') | join(' | ') -}}
	{%- elif 'const' in schema -%}
		{{- schema.const | string if schema.const is integer or schema.const is float else schema.const | tojson -}}
	{%- else -%}
		{{- kinds or 'any' -}}
	{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- for f in (tools or []) | map(attribute='function') -%}
{{ 'type ' ~ f.name ~ ' = (_: ' ~ type_of(f.parameters, '  ', f.parameters) ~ ') => any;\n' }}
{%- endfor -%}
{%- for m in messages -%}{{ m.role ~ '<|role_sep|>\n' ~ m.content ~ '<|message_sep|>\n\n' }}{%- endfor -%}
{{- 'assistant<|role_sep|>\n' if add_generation_prompt -}}
""",
    "turns", "tools", "tools_rich", "tools_refs", tokenizer="llama",
)  # fmt: skip

style(
    "smolvlm",
    r"""<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:{% if m['content'][0]['type'] != 'image' %} {% endif %}{% for piece in m['content'] if piece['type'] in ('text', 'image') %}{{ piece['text'] if 'text' in piece else '<image>' }}{% endfor %}<end_of_utterance>
{% endfor %}{{ 'Assistant:' if add_generation_prompt else '' }}""",
    "parts", "turns", "prefill_parts",
)  # fmt: skip

style(
    "llava",
    r"""
{% for m in messages %}
{% set pieces = [] if m.content is string else m.content %}
{% if m.role != 'system' %}
{{ m.role.upper() ~ ': ' -}}
{% endif %}
{# what is seen comes first #}
{{ (image_token | default('<image>') ~ '\n') * (pieces | selectattr('type', 'equalto', 'image') | list | length) -}}
{% for piece in pieces | selectattr('type', 'equalto', 'text') %}
{% if m.role == 'assistant' %}
{% generation %}
{{ piece.text ~ ' ' -}}
{% endgeneration %}
{% else %}
{{ piece.text ~ ' ' -}}
{% endif %}
{% endfor %}
{% endfor %}
{% if add_generation_prompt %}
ASSISTANT:
{%- endif %}
""",
    "parts", "prefill_parts", "turns", tokenizer="extra",
)  # fmt: skip

style(
    "stablelm-code",
    r"""
{% if messages[0].role == 'system' %}{% set system, rest = messages[0].content, messages[1:] %}{% else %}{% set system, rest = none, messages %}{% endif %}
{% with open = '<|im_start|>', close = '<|im_end|>' %}
{% if system is not none %}{{ open }}system
{{ system }}{{ close }}
{% endif %}
{% for message in rest %}{% set ns = '%s%s\n%s%s' | format(open, message.role, message.content, close) %}{{ ns }}
{% endfor %}
{% endwith %}
{{- '<|im_start|>assistant\n' if add_generation_prompt else '' }}
""",
    "user", "turns",
)  # fmt: skip

style(
    "shieldgemma",
    r"""
{%- set policies = [('dangerous', 'No danger.'), ('harassment', 'No insults.'), ('hate', 'No hate.')] -%}
{%- if guideline is not defined %}{%- set guideline = policies | map('last') | join('\n* ') | indent(1) -%}
{%- elif guideline in policies | map('first') | list %}{%- set guideline = (policies | selectattr(0, 'eq', guideline) | first)[1] -%}{%- endif -%}
{{ bos_token }}You check rules.

<start_of_turn>
{% for message in messages[-2:] %}
{{ {'user': 'Human Question', 'assistant': 'Chatbot Response'}[message.role] }}: {{ message.content | trim }}
{% endfor %}
<end_of_turn>

* {{ guideline }}

Is the last {{ 'response' if messages[-1].role == 'assistant' else 'question' }} fine? 'Yes' or 'No'.
""",
    "user", "closed", ("user", {"guideline": "hate"}), ("user", {"guideline": "No rhymes."}), "calls", tokenizer="gemma",
)  # fmt: skip

style(
    "phi4-agent",
    r"""
{%- set tool_names = (tools or []) | map(attribute='function.name') | map('upper') | sort | unique | list -%}
{%- set calls = messages | selectattr('tool_calls', 'defined') | map(attribute='tool_calls') | sum(start=[]) -%}
{%- set answered = messages | selectattr('role', 'eq', 'tool') | map(attribute='tool_call_id', default='none') | list -%}
{{ bos_token }}# {{ tool_names | length }}: {{ tool_names | join(', ', ) | default('no tools', true) }}
{% for call in calls %}
{{ '%2d) %-12s' | format(loop.index, call.function.name) }}|{{ call.id }}|{{ 'answered' if call.id in answered else 'open' }}{{ loop.cycle('', ' .') }}
{% else %}
no calls
{% endfor %}
{% for batch in messages | batch(2, {'role': 'nobody', 'content': '-'}) %}
[{% for m in batch %}{{ m.role | first | upper }}:{{ (m.content | default('(none)', true) | string)[:12] }}{{ '; ' if not loop.last }}{% endfor %}]
{% endfor %}
""",
    "turns", "parallel", "calls", tokenizer="llama",
)  # fmt: skip

style(
    "qwen3-training",
    r"""
{%- for m in messages %}
    {{- '<|im_start|>' ~ m.role ~ '\n' }}
    {%- if m.role != 'assistant' %}{{ m.content ~ '<|im_end|>\n' }}{% continue %}{% endif %}
    {%- generation %}
        {%- set thought = m.reasoning_content %}
        {%- if thought is string %}{{ '<think>\n%s\n</think>\n\n' | format(thought.strip('\n')) }}{% endif %}
        {{- m.content | default('', true) }}
        {%- for one in m.tool_calls or [] %}{{ '\n<tool_call>' ~ one.function | tojson ~ '</tool_call>' }}{% endfor %}
        {{- '<|im_end|>' }}
    {%- endgeneration %}
    {{- '\n' ~ (thought is defined) }}
{%- endfor %}
{{- '<|im_start|>assistant\n' if add_generation_prompt }}
""",
    "turns", "calls", "reasoning", "closed_reasoning", "prefill", "prefill_reasoning",
)  # fmt: skip

style(
    "step-audio",
    r"""
{%- macro flat(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}{{ content | selectattr('text') | map(attribute='text') | map('trim') | join(' ') }}{%- endif -%}
{%- endmacro -%}
{%- macro turn(role) -%}
<|BOT|>{{ role }}
{{ caller(role | length, loud=true) }}<|EOT|>
{%- endmacro -%}
{% for message in messages %}
{% call(n, loud=false) turn(message.role) %}
{{- flat(message.content) | upper if loud and n < 5 else flat(message.content) }}
{%- endcall %}
{% endfor %}
{{- '<|BOT|>' if add_generation_prompt }}
""",
    "turns", "parts",
)  # fmt: skip

style(
    "outline",
    r"""
{%- macro walk(node, depth=0) -%}
{{ '  ' * depth }}- {{ node.name }}{{ ': ' ~ node.type if node.type }}
{% for child in node.children recursive %}
{{ '  ' * (depth + loop.depth) }}* {{ loop.depth0 }}/{{ loop.index }} {{ child.name }}
{% if child.children %}{{ loop(child.children) }}{% endif %}
{% endfor %}
{%- endmacro -%}
{{ walk({'name': 'chat', 'type': 'list', 'children': tree}) }}
{% for message in messages %}{{ message.role }}={{ message.content }}{% if loop.changed(message.role) %}!{% endif %};{% endfor %}
""",
    ("turns", {"tree": [{"name": "a", "children": [{"name": "b", "children": []}, {"name": "c", "children": [{"name": "d"}]}]}, {"name": "e"}]}),
    "alternation",
)  # fmt: skip

style(
    "plain-roles",
    r"""{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}""",
    "turns", "unicode", "null", "parts", "number_content", "dict_content", "late_system", "upper_roles", "prefill_padded",
)  # fmt: skip

style(
    "whole-message",
    r"""{# content, reasoning_content #}{% for m in messages %}{{ m }}
{{ m | tojson }}
{% endfor %}{{ tools }} {{ documents }} {{ add_generation_prompt }}""",
    "turns", "reasoning", "closed_reasoning", "reasoning_names", "thinking_names", "calls", "parts", "unicode", "documents",
    "null", "prefill", "prefill_reasoning", "prefill_parts",
)  # fmt: skip
