"""Templates mean what Jinja makes of them, in which kerchunk evaluates them, or are refused."""

from __future__ import annotations

from typing import Any

import jinja2.sandbox
import pytest
from hypothesis import given, strategies as st

from icechunk import InvalidInputError
from icechunk.kerchunk import templates
from icechunk.kerchunk.expressions import ExpressionError, compile_template
from icechunk.kerchunk.templates import Templates

NAMES = {"i": 7, "j": 12, "u": "s3://bucket/x", "half": 0.5, "s": "a b"}
CALLS = {"f": "{{c}}/y", "g": "{{ a }}-{{ '%03d' % b }}"}


def by_jinja(template: str) -> str:
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
    calls = {name: environment.from_string(text).render for name, text in CALLS.items()}
    return environment.from_string(template).render(**NAMES, **calls)


def rendered(template: str) -> str:
    calls = {name: compile_template(text) for name, text in CALLS.items()}
    return compile_template(template)({**NAMES, **calls})


EXAMPLES = (
    # of kerchunk's documentation
    "{{u}}",
    "{{f(c='text')}}",
    "http://{{u}}_{{i}}",
    "{{(i + 1) * 1000}}",
    "{{(i) * 1000}}.nc",
    "prefix/{{ '%02d' % i }}.nc",
    "{{ '%02d-%03d' % (i, j) }}",
    "{{ '%04i.%s' % (i, u) }}",
    "{{ '%5.1f|%+d|%x' % (half, i, j) }}",
    "{{ '%03d' | format(i) }}",
    "{{ '{:02d}_{:03d}'.format(i, j) }}",
    "{{ '{1}/{0}'.format(i, s) }}",
    "{{ i ~ '_' ~ j }}",
    "{{ u + '/k' }}",
    "{{ i / 2 }} {{ i // 2 }} {{ i % 4 }} {{ -i // 2 }} {{ -i % 4 }}",
    "{{ 1 - 2 - 3 }} {{ 2 * 3 + 4 * 5 }} {{ 2 * (3 + 4) }} {{ 7 // 2 * 2 }}",
    "{{ '12' | int + 1 }} {{ half | int }}",
    "{{ g(a=u, b=i + 1) }}",
    "{{ 1.5 * 2 }}",
    "a{b}c { d } %",
)


@pytest.mark.parametrize("template", EXAMPLES)
def test_templates_mean_what_jinja_says(template: str) -> None:
    assert rendered(template) == by_jinja(template)


numbers = st.integers(0, 10**6).map(str) | st.sampled_from(["i", "j", "half"])
sums = st.recursive(
    numbers,
    lambda inner: (
        st.builds(
            "({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "//", "%", "/"]), inner
        )
        | st.builds("{} {} {}".format, inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner)
    ),
    max_leaves=6,
)


@given(sums)
def test_arithmetic_is_that_of_jinja(expression: str) -> None:
    template = f"{{{{ {expression} }}}}"
    try:
        expected = by_jinja(template)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError, match="zero"):
            rendered(template)
        return
    try:
        assert rendered(template) == expected
    except ExpressionError as error:
        assert "64 bits" in str(error)


#: What holds a machine, or is no arithmetic.
BOMBS: dict[str, str] = {
    "power": "{{ 9 ** 9 ** 9 }}",
    "power in brackets": "{{ (9**(9**9)) % 7 }}",
    "repetition": "{{ 'a' * 3000000000 }}",
    "repetition of a result": "{{ ('a' * 1000) * 1000 }}",
    "products": "{{ " + " * ".join(["99999999999999999999"] * 20) + " }}",
    "a long number": "{{ " + "9" * 5000 + " }}",
    "width": "{{ '%999999999d' % i }}",
    "width of few digits": "{{ '%101d' % i }}",
    "precision": "{{ '%.999999999f' % i }}",
    "width of format": "{{ '{:>999999999}'.format(i) }}",
    "format of a filter": "{{ '%999999999d' | format(i) }}",
    "star": "{{ '%*d' % (999999999, i) }}",
    "long text": "{{ " + " ~ ".join(["big"] * 90) + " }}",
    "depth": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "depth of few words": "{{ " + "(" * 60 + "1" + ")" * 60 + " }}",
    "depth of calls": "{{ " + "f(c=" * 1000 + "1" + ")" * 1000 + " }}",
    "length": "{{ " + "+".join(["1"] * 4000) + " }}",
    "size": "x" * 20_000 + "{{ i }}",
    "attribute": "{{ u.__class__ }}",
    "attribute of format": "{{ '{0.__class__}'.format(u) }}",
    "index of format": "{{ '{0[0]}'.format(u) }}",
    "nested format": "{{ '{:{}}'.format(i, 9999999) }}",
    "mapping": "{{ '%(i)s' % u }}",
    "attr": "{{ u | attr('__class__') }}",
    "filter": "{{ u | upper }}",
    "item": "{{ u[0] }}",
    "list": "{{ [1] * 10 }}",
    "call of a text": "{{ u() }}",
    "call by position": "{{ f(1) }}",
    "a call without arguments": "{{ f }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "range": "{{ range(10) }}",
    "statement": "{% for i in range(10) %}x{% endfor %}",
    "comment": "{# x #}{{ i }}",
    "trimming": "x {{- i }}",
    "include": "{% include 'x' %}",
    "open": "{{ i",
    "empty": "{{ }}",
    "tuple": "{{ (i, j) }}",
    "zero": "{{ i // 0 }}",
    "missing": "{{ '%d %d' % i }}",
    "too many": "{{ '%d' % (i, j) }}",
    "condition": "{{ i if i else j }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_is_no_arithmetic_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NAMES, "big", "x" * 5000)
    with pytest.raises(ExpressionError):
        rendered(BOMBS[name])
    if "{{" in BOMBS[name]:
        made = Templates({"u": "x", **CALLS, "big": "x" * 5000})
        with pytest.raises(InvalidInputError, match="'k'"):
            made.expand("k", BOMBS[name])


def test_templates_do_not_call_each_other() -> None:
    made = Templates({"a": "{{ b(x=1) }}{{ b(x=1) }}", "b": "{{ a() }}{{ a() }}"})
    with pytest.raises(InvalidInputError, match="undefined"):
        made.expand("k", "{{ a() }}")


HUGE = {"stop": 10**30}


@pytest.mark.parametrize(
    "dimensions",
    [
        {"i": HUGE},
        {"i": {"start": 10**30, "stop": 0, "step": -1}},
        {"i": {"stop": 10**5}, "j": {"stop": 10**5}},
        {name: {"stop": 2} for name in "abcdefghijklmnopqrstuvwxyz"},
        {"i": list(range(4000)), "j": list(range(4000))},
    ],
)
def test_generators_are_bounded_before_they_start(
    dimensions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("itertools.product", lambda *_: pytest.fail("it has started"))
    entry = {"key": "k", "url": "u", "dimensions": dimensions}
    with pytest.raises(InvalidInputError, match=r"gen\[0\].*references"):
        Templates({}).generate([entry])


def test_generators_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_GENERATED", 10)
    entry = {"key": "k{{i}}", "url": "u", "dimensions": {"i": {"stop": 6}}}
    assert len(Templates({}).generate([entry])) == 6
    with pytest.raises(InvalidInputError, match=r"gen\[1\]"):
        Templates({}).generate([entry, entry])
    assert Templates({}).generate([{**entry, "dimensions": {"i": HUGE, "j": []}}]) == {}


def test_values_of_dimensions_are_values() -> None:
    entry = {"key": "k{{i}}", "url": "u", "dimensions": {"i": ["a", 1, [2]]}}
    with pytest.raises(InvalidInputError, match="not a value"):
        Templates({}).generate([entry])
    with pytest.raises(InvalidInputError, match="dimension and a template"):
        Templates({"i": "x"}).generate([entry])
