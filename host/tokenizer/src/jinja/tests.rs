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

/// Python 3.11 and Jinja 3.1 gave the texts.
#[test]
fn numbers_are_formatted_as_in_python() {
    let infinite = "{% set inf = 1e308 * 10 %}{% set nan = inf - inf %}";
    for (source, expected) in [
        ("'%x %X %o %#x %#X' % (-255, -255, -8, -255, 255)", "-ff -FF -10 -0xff 0XFF"),
        ("'%#010x|%.5d|%08.3d|%#.5x' % (-255, -42, 5, 42)", "-0x00000ff|-00042|00000005|0x0002a"),
        ("'%-+5d|%+-5d|%- 5d|% 05d|%+05d' % (5, 5, 5, 5, 5)", "+5   |+5   | 5   | 0005|+0005"),
        ("'%-05d|%05s|%05c|%*d|%.*f' % (5, 1, 'x', -5, 42, -1, 1.5)", "5    |    1|    x|42   |2"),
        (
            "'%.3g %.3g %g %g %.0g' % (1234.5, 0.00001234, 1e5, 1e6, 1.5)",
            "1.23e+03 1.23e-05 100000 1e+06 2",
        ),
        ("'%#.3g %#.1g %g %E %G' % (1.0, 5, -0.0, 1234.5, 1e-10)", "1.00 5. -0 1.234500E+03 1E-10"),
        ("'%F %f %+f %010f %e' % (inf, nan, nan, -inf, inf)", "INF nan +nan -000000inf inf"),
        (
            "'%d %.0f %#.0f %#.0e %ld' % (1e20, 2.5, 2.5, 2.5, 5)",
            "100000000000000000000 2 2. 2.e+00 5",
        ),
        (
            "'{:.3g} {:.3} {:.3} {:.4}'.format(1234.5, 1.23456, 100.0, 100.0)",
            "1.23e+03 1.23 1e+02 100.0",
        ),
        (
            "'{:.1} {:.20} {:.2} {:#.3}'.format(0.0, 0.1, 12.0, 1.0)",
            "0e+00 0.10000000000000000555 1.2e+01 1.00",
        ),
        (
            "'{:b} {:#b} {:#x} {:#X} {:#o}'.format(-5, -5, -255, 255, 8)",
            "-101 -0b101 -0xff 0XFF 0o10",
        ),
        (
            "'{:=5d} {:*=6d} {:<05d} {:*<05d} {:^05d}'.format(-5, -5, 1, 1, 1)",
            "-   5 -****5 10000 1**** 00100",
        ),
        ("'{:05} {:>05} {:^7}|'.format('a', 'a', 'abc')", "a0000 0000a   abc  |"),
        (
            "'{:08,} {:010,} {:010,.2f} {:05,}'.format(1234, -1234, 1234.5, 12)",
            "0,001,234 -0,001,234 001,234.50 0,012",
        ),
        (
            "'{:_x} {:_b} {:,} {:,g}'.format(2882400018, 1023, inf, 12345.0)",
            "abcd_ef12 11_1111_1111 inf 12,345",
        ),
        ("'{:.1%} {:%} {:010} {:+}'.format(0.1234, inf, -inf, nan)", "12.3% inf% -000000inf +nan"),
        (
            "'{:n} {:5} {:d} {:5c}| {:G}'.format(1e10, true, true, 65, 1e-10)",
            "1e+10     1 1     A| 1E-10",
        ),
    ] {
        let source = infinite.to_owned() + "{{ " + source + " }}";
        assert_eq!(render(&source).unwrap(), expected, "{source}");
    }
    for refused in [
        "'%x' % 1.5",
        "'%f' % 'a'",
        "'%d' % (1e308 * 10)",
        "'%c' % 'ab'",
        "'%c' % -1",
        "'%b' % 5",
        "'%5' % 1",
        "'{:d}'.format(1.5)",
        "'{:s}'.format(1)",
        "'{:f}'.format('a')",
        "'{:.2d}'.format(1)",
        "'{:,x}'.format(255)",
        "'{:=5}'.format('a')",
        "'{:5}'.format(none)",
        "'{:>5}'.format([1])",
        "'{:5,_}'.format(5)",
    ] {
        assert!(render(&format!("{{{{ {refused} }}}}")).is_err(), "{refused}");
    }
}

/// One bound for all of them, and one kind of error.
#[test]
fn widths_and_places_are_bounded() {
    for source in [
        "'%999999999999d' % 1",
        "'%.999999999f' % 1.5",
        "'%.99999999999999999999999999999999999999999999f' % 1.5",
        "'%*d' % (-10001, 1)",
        "'{:>99999999999}'.format(1)",
        "'{:*<10001}'.format('a')",
        "'{:.10001}'.format(1.5)",
        "'a'.expandtabs(10 ** 9)",
        "'a' | indent(10001)",
        "[1] | tojson(indent=10001)",
    ] {
        let error = render(&format!("{{{{ {source} }}}}")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Value, "{source}");
        assert!(error.message.contains("expected at most 10000"), "{source}: {error}");
    }
    for source in [
        "('%.10000f' % 1.5) | length",
        "'{:.10000}'.format(0.1) | length",
        "'{:10000}'.format(1)",
        "'a\tb'.expandtabs(10000)",
        "[1] | tojson(indent=10000)",
    ] {
        assert!(render(&format!("{{{{ {source} }}}}")).is_ok(), "{source}");
    }
    // What pieces make together is counted as they are made.
    for source in [
        "{{ ('{0}' * 100000).format('a' * 1000000) }}",
        "{{ ('{0:>9999}' * 100000).format(1) }}",
        "{{ ('%(a)s' * 100000) % {'a': 'a' * 1000000} }}",
        "{{ ('%9999d' * 100000) % ((1,) * 100000) }}",
    ] {
        assert_eq!(render(source).unwrap_err().kind, ErrorKind::Bound, "{source}");
    }
}

#[test]
fn whole_numbers_stop_at_their_ends() {
    let least = "{% set least = -170141183460469231731687303715884105727 - 1 %}";
    for (source, expected) in [
        ("{{ [1, 2, 3][1::170141183460469231731687303715884105727] }}", Some("[2]")),
        ("{{ [1, 2, 3][::-170141183460469231731687303715884105727] }}", Some("[3]")),
        ("{{ 'abc'[least::least] }}", Some("")),
        ("{{ '%x' % least }}", Some("-80000000000000000000000000000000")),
        ("{{ least is divisibleby(-1) }}", Some("True")),
        ("{{ -least }}", None),
        ("{{ least | abs }}", None),
        ("{{ least // -1 }}", None),
        ("{{ least | round(-38) }}", None),
    ] {
        let found = render(&[least, source].concat());
        match expected {
            Some(expected) => assert_eq!(found.unwrap(), expected, "{source}"),
            None => assert_eq!(found.unwrap_err().kind, ErrorKind::Value, "{source}"),
        }
    }
}

/// Jinja 3.1 gave the texts.
#[test]
fn numbers_and_slices_are_those_of_jinja() {
    for (source, expected) in [
        ("{{ 7 | round(1, 'common') }} {{ 7 | round(0, 'ceil') }} {{ true | round }}", "7 7.0 1"),
        (
            "{{ 15 | round(-1) }} {{ 25 | round(-1) }} {{ -25 | round(-1) }} {{ -26 | round(-1) }}",
            "20 20 -20 -30",
        ),
        ("{{ 12345678901234567890 | round(-2) }} {{ 7 | round(-400) }}", "12345678901234567900 0"),
        (
            "{{ 1e3 is divisibleby(3) }} {{ 9 is divisibleby 4.5 }} {{ 1.0 is divisibleby 0.1 }}",
            "False True False",
        ),
        (
            "{{ 9 is divisibleby(num=3) }} {{ 1.0 // 0.1 }} {{ 4.0 % -2.0 }} {{ -5 % 3.5 }}",
            "True 9.0 -0.0 2.0",
        ),
        ("{{ ['b', 'a'] | unique(attribute='n') | list }} {{ {missing: 1}[nothing] }}", "['b'] 1"),
        ("{{ missing in {'a': 1} }} {{ {'a': 1}.get(missing) }}", "False None"),
        (
            "{{ '' is test }} {{ 'is_none' is test }} {{ 'none' is test }} {{ 1 is test }}",
            "False False True False",
        ),
        ("[{{ true[1:] }}{{ (1 | string | length)[::2] }}{{ {}[1:] }}]", "[]"),
        (
            "{% set nan = 1e308 * 10 - 1e308 * 10 %}{{ nan > 1 }}{{ 1 >= nan }}{{ nan < 1 }}",
            "FalseFalseFalse",
        ),
        (
            "{% set nan = 1e308 * 10 - 1e308 * 10 %}{{ [1, nan, 0] | max }}{{ [1, nan, 0] | min }}",
            "10",
        ),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
    for source in [
        "{{ ('x').istitle()[1:] }}",
        "{% set x = 5 %}{{ x[1:] }}",
        "{{ dict[:none] }}",
        "{{ namespace(missing, q=1) }}",
        "{{ namespace({}, {}) }}",
        "{{ 1 is is_none }}",
        "{{ 9 is divisibleby 0 }}",
        "{{ 'a' is divisibleby 3 }}",
    ] {
        assert!(render(source).is_err(), "{source}");
    }
}

#[test]
fn values_without_an_order_are_not_sorted() {
    let long = "{% set ns = namespace(x=[]) %}{% for i in range(200) %}\
                {% set ns.x = ns.x + [ODD if i % 3 == 1 else -i] %}{% endfor %}";
    for (odd, end, fails) in [
        ("'a'", "{{ ns.x | sort }}", true),
        ("'a'", "{{ ns.x | sort(reverse=true) }}", true),
        ("none", "{{ ns.x | sort }}", true),
        ("none", "{{ ns.x | min }}", true),
        ("none", "{{ ns.x | groupby('y') }}", true),
        ("missing", "{{ ns.x | sort }}", true),
        ("(1e308 * 10 - 1e308 * 10)", "{{ ns.x | sort }}{{ ns.x | sort(reverse=true) }}", false),
        ("[1]", "{{ ns.x | sort(attribute='y') }}", false),
    ] {
        let source = long.replace("ODD", odd) + end;
        assert_eq!(render(&source).is_err(), fails, "{odd} {end}");
    }
    for (source, expected) in [
        ("{{ [none, none] | sort }}{{ [1, 2] | sort(attribute='x') }}", "[None, None][1, 2]"),
        ("{{ ['b', 'A', 'a', 'B'] | sort(reverse=true) }}", "['b', 'B', 'A', 'a']"),
        ("{{ {'b': 2, 'a': 1} | tojson(sort_keys=true) }}", r#"{"a": 1, "b": 2}"#),
    ] {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
    for source in
        ["{{ {1: 2, 'a': 3} | tojson(sort_keys=true) }}", "{{ {1: 2, 'a': 3} | dictsort }}"]
    {
        assert_eq!(render(source).unwrap_err().kind, ErrorKind::Type, "{source}");
    }
    let shared = "{% set ns = namespace(x='a' * 10000000) %}{% set all = [ns] * 100000 %}";
    for end in ["sort(attribute='x')", "unique(true, 'x') | list", "groupby('y', 'b' * 10000000)"] {
        let error = render(&format!("{shared}{{{{ all | {end} }}}}")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Bound, "{end}");
    }
}

/// Values that hold each other in a long chain would take the stack when they are dropped.
#[test]
fn values_form_no_long_chains() {
    for source in [
        "{% for i in range(99999) %}{% set ns.x = cycler(ns.x) %}{% endfor %}",
        "{% set ns.x = cycler(1) %}{% for i in range(99999) %}{% set ns.x = cycler(ns.x.next) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in [ns.x] %}{% set ns.x = loop %}{% endfor %}{% endfor %}",
    ] {
        let source = ["{% set ns = namespace(x=1) %}", source].concat();
        assert_eq!(render(&source).unwrap_err().kind, ErrorKind::Bound, "{source}");
    }
    for source in [
        "{% for i in range(20000) %}{% for j in [1] %}{% set _ = loop.changed(ns.x) %}{% set ns.x = loop %}\
         {% endfor %}{% endfor %}",
        "{% for i in range(20000) %}{% for j in [1] %}{% set ns.y = loop %}{% endfor %}\
         {% set _ = ns.y.changed(ns.x) %}{% set ns.x = ns.y %}{% endfor %}",
        "{% macro f() %}{% set ns.x = caller %}{% endmacro %}\
         {% for i in range(20000) %}{% set p = ns.x %}{% call f() %}{% endcall %}{% endfor %}",
        "{% for i in range(20000) %}{% set p = ns.x %}{% for j in [1] recursive %}{% set ns.x = loop %}\
         {% endfor %}{% endfor %}",
    ] {
        let source = ["{% set ns = namespace(x=1) %}", source].concat();
        assert_eq!(render(&source).unwrap(), "", "{source}");
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
