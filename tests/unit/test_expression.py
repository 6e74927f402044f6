"""Expressions become trees of known words; every other text is a fault with its place."""

import itertools

import pytest

from recsys_moe.errors import SpecError
from recsys_moe.expression import (
    FUNCTIONS,
    MAX_DEPTH,
    MAX_LENGTH,
    Apply,
    ExpressionError,
    Number,
    Read,
    Text,
    columns_of,
    nodes_of,
    parse,
)
from recsys_moe.expression_types import PRIMITIVES, resolve
from recsys_moe.feature import Column

COLUMNS = [
    Column(name="price", type="float32"),
    Column(name="paid", type="float32"),
    Column(name="age", type="int64"),
    Column(name="shown_at", type="int64"),
    Column(name="country", type="string"),
    Column(name="home", type="string"),
    Column(name="tags", type="string", is_list=True),
    Column(name="title", type="float32", dim=4),
    Column(name="user.id", type="int64"),
]


def test_operators_bind_as_in_python() -> None:
    tree = parse("not a + 2 * -b < 3 and c")

    product = Apply("multiply", (Number(2.0), Apply("negative", (Read("b"),))))
    less = Apply("less", (Apply("add", (Read("a"), product)), Number(3.0)))
    assert tree == Apply("and", (Apply("not", (less,)), Read("c")))


def test_membership_is_a_list_of_values_after_one() -> None:
    inside = Apply("in", (Read("x"), Text("de"), Text("at")))

    assert parse('x in ("de", "at")') == inside
    assert parse("x in ['de', 'at']") == inside
    assert parse("x not in ('de', 'at')") == Apply("not", (inside,))
    assert parse("x in (-1, 2)").arguments[1:] == (Number(-1.0), Number(2.0))


def test_a_line_end_is_a_blank_and_places_count_characters() -> None:
    tree = parse('  "ä"\n== größe ')

    assert tree == Apply("equal", (Text("ä"), Read("größe")))
    assert [node.at for node in nodes_of(tree)] == [1, 1, 8]


@pytest.mark.parametrize("name", ["user.id", "Age (years)", "in", "ﬁt", "it's"])
def test_any_column_has_a_way_to_be_named(name: str) -> None:
    assert columns_of(parse(f'1 + col("{name}")')) == (name,)


def test_a_name_is_taken_as_it_is_written() -> None:
    assert columns_of(parse("ﬁt + ª + b + ﬁt")) == ("ﬁt", "ª", "b")  # Python reads "fit" and "a"


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("", 1, "wanted at position 1 an expression, got nothing"),
        ("(a", 1, "an expression, got '(a' ('(' was never closed)"),
        ("a = 3", 3, "an expression, got '= 3'"),
        ("a\x00b", 1, "an expression"),
        ("1 + lgo(a)", 5, "wanted at position 5 a function, got 'lgo'. Did you mean 'log'?"),
        ("a + eval('1')", 5, "a function, got 'eval'"),
        ("__import__('os').system('x')", 1, "a function"),
        ("a.b", 1, 'col("a.b")'),
        ("a.b(1)", 1, "a function"),
        ("a[0]", 1, "numbers, columns"),
        ("lambda: a", 1, "numbers, columns"),
        ("[x for x in a]", 1, "numbers, columns"),
        ("{a}", 1, "numbers, columns"),
        ("f'{a}'", 1, "numbers, columns"),
        ("(a, b)", 1, "numbers, columns"),
        ("(a := 3)", 2, "numbers, columns"),
        ("a + b'x'", 5, "numbers, columns"),
        ("a + 3j", 5, "numbers, columns"),
        ("a + ...", 5, "numbers, columns"),
        ("a == True", 6, "numbers, columns"),
        ("a == None", 6, "numbers, columns"),
        ("a if b else c", 1, "if_else(condition, a, b)"),
        ("2 * a ** b", 5, "pow(a, b)"),
        ("a // b", 1, "floor(a / b)"),
        ("a & b", 1, "`and`"),
        ("a | b", 1, "`or`"),
        ("~a", 1, "`not`"),
        ("a @ b", 1, "numbers, columns"),
        ("+a", 1, "numbers, columns"),
        ("a is b", 1, "is_missing(x)"),
        ("a < b < c", 1, "one comparison, or several joined by `and`, got 'a < b < c'"),
        ("a in b", 6, "values in brackets"),
        ("a in ()", 6, "values in brackets"),
        ("a in (b, 1)", 7, "a number or a string"),
        ("a in (1 + 1, 1)", 7, "a number or a string"),
        ("log(a, b)", 1, "arguments: 1 of log, got 2"),
        ("if_else(a, b)", 1, "arguments: 3 of if_else, got 2"),
        ("min(a)", 1, "arguments: 2 or more of min, got 1"),
        ("log(x=a)", 1, "one after the other"),
        ("log(*a)", 1, "one after the other"),
        ("col(a)", 1, "one name in quotes"),
        ("col('')", 1, "one name in quotes"),
        ("a == ''", 6, "is_missing(x)"),
        (r"a == '\ud800'", 6, "whole characters"),
        (r"a == '\d'", 6, "invalid escape"),
        ("a + 1e999", 5, "a number that float64 holds"),
        ("a + " + "9" * 400, 5, "a number that float64 holds"),
        ("a + '" + "b" * MAX_LENGTH, 1, "at most 500 characters, got 505 characters"),
        ("-" * MAX_DEPTH + "a", MAX_DEPTH + 1, "at most 50 levels"),
        ("(" * 240 + "a" + ")" * 240, 201, "nested"),
        ("not " * 120 + "a", 201, "at most 50 levels"),
    ],
)
def test_what_is_not_of_the_language_is_a_fault_with_its_place(
    text: str, at: int, words: str
) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)

    assert f"wanted at position {at} " in str(caught.value)
    assert words in str(caught.value)


def test_the_limits_themselves_are_allowed() -> None:
    parse("-" * (MAX_DEPTH - 1) + "a")
    parse("a" * MAX_LENGTH)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_the_arguments_it_says_and_no_others(name: str) -> None:
    least, most = FUNCTIONS[name]
    for count in range(6):
        text = f"{name}({', '.join('a' * count)})"
        if least <= count <= most:
            assert len(parse(text).arguments) == count
        else:
            with pytest.raises(SpecError, match="arguments"):
                parse(text)


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("log(prise)", 5, "a column, got 'prise'. Did you mean 'price'?"),
        ("1 + 2", 1, "a column somewhere, got none"),
        ("price + 'de'", 9, "a number, got a string, 'de'"),
        ("country", 1, "a number, got a string, 'country'"),
        ("'de'", 1, "a column somewhere"),
        ("-country", 2, "a number, got a string"),
        ("country < 'de'", 1, "a number, got a string"),
        ("coalesce(country, home)", 10, "a number, got a string"),
        ("if_else(age, country, home)", 14, "a number, got a string"),
        ("not country", 5, "a number, got a string"),
        ("country == 3", 12, "a string, as what it is compared with, got a number"),
        ("age == 'de'", 1, "a string, as what it is compared with, got a number"),
        ("age in ('de', 'at')", 1, "a string, as what"),
        ("country in ('de', 3)", 19, "a string, as what"),
        ("country == tags", 12, "a string, as what it is compared with, got a list"),
        ("('de' == 'at') + age", 2, "a column, got 'de'"),
        ("age + ('de' in ('at', 'de'))", 8, "a column, got 'de'"),
        ("is_missing('de') + age", 12, "a column, got 'de'"),
        ("tags", 1, "a number, got a list, 'tags'"),
        ("abs(tags)", 5, "a number, got a list"),
        ("is_missing(tags)", 12, "a number, got a list"),
        ("tags == 'de'", 1, "a string, as what it is compared with, got a list"),
        ("tags == 1", 1, "a number, got a list"),
        ("title + 1", 1, "a number, got a vector"),
        ("len(country)", 5, "a column of lists in len, got 'country'"),
        ("len(title)", 5, "a column of lists in len"),
        ("len(len(tags))", 5, "a column of lists in len, got a number"),
        ("hour(price)", 6, "int64 microseconds in hour, got floats, 'price'"),
        ("days_between(shown_at, price)", 24, "int64 microseconds in days_between"),
    ],
)
def test_what_does_not_suit_the_columns_is_a_fault_with_its_place(
    text: str, at: int, words: str
) -> None:
    parse(text)
    with pytest.raises(ExpressionError) as caught:
        resolve(text, COLUMNS)

    assert f"wanted at position {at} {words}" in str(caught.value)


def test_all_that_is_resolved_is_spelled_in_primitives() -> None:
    operators = ["+", "-", "*", "/", "%", "<", "<=", ">", ">=", "==", "!=", "and", "or"]
    texts = [f"price {operator} age" for operator in operators]
    texts += ["-price", "not price", "age in (1, 2)", "age not in (1, 2)", "len(tags)"]
    texts += ["country == home", "country != 'de'", "country in ('de',)", "is_missing(country)"]
    texts += [
        f"{name}({', '.join(['age'] * least)})"
        for name, (least, _) in FUNCTIONS.items()
        if name != "len"
    ]

    trees = [resolve(text, COLUMNS) for text in texts]

    used = {
        node.name
        for node in itertools.chain.from_iterable(map(nodes_of, trees))
        if isinstance(node, Apply)
    }
    assert used == set(PRIMITIVES)
