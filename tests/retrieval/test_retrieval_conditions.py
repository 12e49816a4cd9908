"""Filters: what is allowed becomes a WHERE clause, and what is not is named by its field."""

import json

import pytest

from refrag.errors import InvalidRequest
from refrag.retrieval.conditions import Condition, parse_filter

pytest.importorskip("lancedb")
from refrag.retrieval.lance_sql import where_clause

KINDS = {"lang": "string", "year": "number", "open": "bool"}


def test_a_filter_is_all_of_its_conditions():
    assert parse_filter('{"lang": ["en", "de"], "year": {"gte": 2020, "lt": 2024}, "open": true}') == (
        Condition("lang", "in", ("en", "de")),
        Condition("year", "gte", 2020),
        Condition("year", "lt", 2024),
        Condition("open", "eq", True),
    )
    assert parse_filter("{}") == ()


def test_values_stay_values_in_the_clause():
    conditions = parse_filter('{"lang": "e\' OR 1=1 --", "year": {"ne": 3}, "open": false}')
    assert where_clause(conditions, KINDS) == (
        "meta_lang = 'e'' OR 1=1 --' AND meta_year <> CAST(3.0 AS DOUBLE) AND meta_open = false"
    )
    assert where_clause((), KINDS) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lang=en", "filter is not JSON"),
        ("[]", r"filter is \[\]; send an object"),
        ('{"a b": 1}', "filter has the field 'a b'"),
        ('{"lang": null}', "filter field 'lang' is null; give a string, a number"),
        ('{"lang": {"like": "e"}}', "filter field 'lang' has 'like'; the comparisons are eq, ne, gt"),
        ('{"lang": {}}', "filter field 'lang' has no comparison"),
        ('{"lang": []}', "has 0 values to choose from"),
        ('{"lang": ["en", 1]}', "values of several types"),
        ('{"open": {"gt": true}}', "compares true or false by gt"),
        ('{"year": {"gt": [1]}}', r"filter field 'year', gt, is \[1\]"),
        ('{"year": NaN}', "finite number"),
        ('{"year": -Infinity}', "finite number"),
        ('{"year": 9223372036854775808}', "filter field 'year' is 9223372036854775808; give a finite number below"),
        ('{"year": ' + "9" * 400 + "}", "filter field 'year' is 9{80}; give a finite number"),
        ('{"lang": "\\ud800"}', "filter has the lone surrogate"),
        ('{"lang": ' + "[" * 5000 + "]" * 5000 + "}", "filter is not JSON"),
        ('{"year": ' + "9" * 5000 + "}", "filter is not JSON"),
        (json.dumps({f"f{n}": 1 for n in range(33)}), "33 conditions, the limit is 32"),
    ],
)
def test_a_bad_filter_is_told_with_its_field(text, problem):
    with pytest.raises(InvalidRequest, match=problem):
        parse_filter(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"colour": "red"}', "the field 'colour', which no passage has; the collection's fields: lang, open, year"),
        ('{"lang": 3}', "filter field 'lang' is of type string, and is compared with 3"),
        ('{"year": ["a"]}', "filter field 'year' is of type number, and is compared with 'a'"),
    ],
)
def test_a_filter_that_the_collection_does_not_fit_is_told_too(text, problem):
    with pytest.raises(InvalidRequest, match=problem):
        where_clause(parse_filter(text), KINDS)
