"""Errors of users: one line that is composed of the fields."""

import pickle

import pytest

from flax_resnet.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"key": "a.b", "value": None, "allowed": "int"}, "a.b=None: must be int"),
        ({"key": "a.b", "value": 1e-5, "allowed": "0"}, "a.b=1e-05: must be 0"),
        (
            {"key": "a.b", "value": "fob", "allowed": ("foo", "bar")},
            "a.b='fob': did you mean 'foo'?",
        ),
        ({"key": "--x", "value": "y", "allowed": ("foo", "bar")}, "--x=y: allowed: bar, foo"),
        ({"key": "x", "allowed": ("ellipsis", "bar")}, "x: allowed: bar, ellipsis"),  # no value
        ({"problem": "is damaged", "key": "/x"}, "/x: is damaged"),
        (
            {"problem": "is full", "key": "disk", "value": 3, "allowed": "5", "cure": "delete"},
            "disk=3: is full; must be 5; delete",
        ),
    ],
)
def test_the_message_is_composed_of_the_fields(fields, line):
    error = ConfigError(**fields)
    assert str(error) == line
    again = pickle.loads(pickle.dumps(error))  # from another process
    assert (str(again), again.key, again.cure) == (line, error.key, error.cure)
