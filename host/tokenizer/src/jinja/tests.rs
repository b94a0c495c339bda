//! Values, white space, scopes, errors and bounds of templates.

use super::*;

fn now() -> chrono::NaiveDateTime {
    let day = chrono::NaiveDate::from_ymd_opt(2024, 7, 26).unwrap();
    day.and_hms_opt(14, 5, 9).unwrap()
}

fn render(source: &str) -> Result<String, JinjaError> {
    let names = serde_json::json!({
        "text": "a'b", "items": [1, 2.5, true, null, "x"], "dict": {"items": 3, "b": {"c": []}},
        "messages": [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yo"}],
    });
    let Value::Dict(names) = Value::from(&names) else { return Ok(String::new()) };
    let names = names.entries().iter().map(|(key, value)| (key.to_string(), value.clone()));
    Template::parse(source)?.render(names.collect(), now(), Limits::default())
}

#[test]
fn values_print_as_in_python() {
    for (source, expected) in [
        ("{{ items }}|{{ text }}|{{ none }}{{ true }}", "[1, 2.5, True, None, 'x']|a'b|NoneTrue"),
        ("{{ [text, \"q\\\"\", '\\n'] }}", "[\"a'b\", 'q\"', '\\n']"),
        ("{{ dict.items() | list }}", "[('items', 3), ('b', {'c': []})]"),
        ("{{ dict['items'] }}{{ missing }}", "3"),
        (
            "{{ 1e16 }} {{ 0.1 + 0.2 }} {{ 7 // 2 }} {{ -7 % 3 }} {{ 6 / 3 }} {{ 2 ** 10 }}",
            "1e+16 0.30000000000000004 3 2 2.0 1024",
        ),
        ("{{ 'a' ~ none ~ 1.0 ~ [true] }}", "aNone1.0[True]"),
        ("{{ {'a': [1], 'ü': none} | tojson }}", r#"{"a": [1], "ü": null}"#),
        ("{{ {'a': [1, 2]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1,\n    2\n  ]\n}"),
        ("{{ strftime_now('%d %b %Y %H:%M') }}", "26 Jul 2024 14:05"),
        ("{{ '%s-%03d' % ('a', 7) }} {{ '{}:{x:>4}'.format(1, x=2) }}", "a-007 1:   2"),
        ("{{ messages[::-1] | map(attribute='role') | join(',') }}", "assistant,user"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

#[test]
fn white_space_is_trimmed_as_transformers_asks() {
    for (source, expected) in [
        ("{% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
        ("{%- for m in messages -%}\n {{ m.content }} \n{%- endfor -%}\n", " hi yo"),
        ("a {#- note -#} b{# x #}\nc", "abc"),
        ("{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
        ("x\n  {%+ if true %}y{% endif %}", "x\n  y"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source:?}");
    }
}

#[test]
fn names_live_in_their_scopes() {
    for (source, expected) in [
        ("{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}", "1"),
        (
            "{% set ns = namespace(x=1) %}{% for i in [1] %}{% set ns.x = 2 %}{% endfor %}{{ ns.x }}",
            "2",
        ),
        ("{% macro f(a, b='d') %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}", "1d12"),
        ("{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}x{% endcall %}", "<x>"),
        ("{% generation %}{% set y = 1 %}a{% endgeneration %}{{ y is defined }}", "aFalse"),
        (
            "{% for i in [1, [2, [3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
            "123",
        ),
        ("{% for i in range(5) if i % 2 %}{{ loop.index }}{{ i }}{% else %}-{% endfor %}", "1123"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

#[test]
fn misuse_is_named_with_its_line() {
    for (source, expected) in [
        ("\n{{ missing.x }}", "'missing' is undefined (line 2)"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe."),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ 'a' + 1 }}", "can only concatenate str"),
        ("{% include 'x' %}", "other templates"),
        ("{{ x | nothing }}", "No filter named 'nothing'."),
        ("{% if true %}", "unexpected end of template"),
    ] {
        let message = render(source).unwrap_err().to_string();
        assert!(message.contains(expected), "{source}: {message}");
    }
}

#[test]
fn no_template_takes_more_than_its_bounds() {
    let doubling = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    let replacing = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}";
    let blocks = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}";
    let lists = "{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}";
    let nested = "{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}";
    let depth = "{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(0) }}";
    let spinning = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    for source in [
        doubling,
        replacing,
        blocks,
        lists,
        nested,
        depth,
        spinning,
        "{{ 'a' * 10 ** 12 }}",
        "{{ [0] * 10 ** 12 }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 'a'.center(10 ** 12) }}",
        "{{ 'a' | center(10 ** 12) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a\\n' * 1000000 | indent(9999) }}",
        "{{ '{:>99999999999}'.format(1) }}{{ 10 ** 9999 }}",
    ] {
        let started = std::time::Instant::now();
        assert!(render(source).is_err(), "{source}");
        assert!(started.elapsed().as_secs() < 20, "{source}");
    }
    for source in [
        "(".repeat(100_000),
        "{{ ".to_owned() + &"not ".repeat(100_000),
        "{{ 1".to_owned() + &" + 1".repeat(100_000),
        "{% if 1 %}".repeat(100_000),
    ] {
        assert!(render(&("{{ ".to_owned() + &source)).is_err());
    }
}

/// Values that hold another twice, level by level: small in memory, endless for whatever walks them.
#[test]
fn shared_values_are_bounded_wherever_they_go() {
    let shared = "{% set ns = namespace(x=[1], t=(1,)) %}{% for i in range(DEPTH) %}{% set ns.x = [ns.x, ns.x] %}\
                  {% set ns.t = (ns.t, ns.t) %}{% endfor %}";
    for depth in ["18", "40"] {
        let shared = shared.replace("DEPTH", depth);
        for end in [
            "{{ {ns.t: 1} | length }}{{ ns.t in {1: 2} }}",
            "{% set d = {ns.t: 1} %}{{ d[ns.t] }}",
            "{{ raise_exception(ns.x) }}",
            "{{ 'a' | replace(ns.x, 'b') }}",
            "{{ [1].index(ns.x) }}{{ [1] | select(ns.x) }}{{ [1] | map(ns.x) }}",
            "{% for i in range(3) %}{{ loop.changed(ns.x) }}{% endfor %}",
            "{{ {}[ns.x] }}{{ '{}'.format(ns.x) }}{{ [1, 2] | join(ns.x) }}{{ joiner(ns.x) }}",
            "{{ ns.x | tojson(separators=('b' * 10000, ':')) }}",
            "{{ 'a' | truncate(1, true, ns.x) }}{{ 1 | round(1, ns.x) }}",
        ] {
            let started = std::time::Instant::now();
            match render(&format!("{shared}{end}")) {
                Ok(text) => assert!(text.len() < 80 << 20, "{end}"),
                Err(error) => assert!(error.message.len() < 3_000, "{end}"),
            }
            assert!(started.elapsed().as_secs() < 12, "{end}");
        }
    }
    for source in [
        "{% set x = 'a' * 30000000 %}{% for i in range(100000) %}{% if x[29999999] == 'b' %}{% endif %}{% endfor %}",
        "{{ strftime_now('%c' * 10000000) }}",
    ] {
        assert_eq!(render(source).unwrap_err().kind, ErrorKind::Bound, "{source}");
    }
}

#[test]
fn the_deepest_template_fits_a_small_stack() {
    let depth = "{% macro f(x) %}{% if x %}{% for i in [1] %}{{ (((((f(x + 1)))))) }}{% endfor %}{% endif %}{% endmacro %}{{ f(1) }}";
    let thread = std::thread::Builder::new().stack_size(2 << 20);
    let result = thread.spawn(move || render(depth).unwrap_err().kind).unwrap().join().unwrap();
    assert_eq!(result, ErrorKind::Bound);
}
