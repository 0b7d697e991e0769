"""Wrong values of every public parameter, made from what the parameters are checked against."""

import contextlib
import inspect
import math
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.utils._param_validation import (
    InvalidParameterError,
    generate_invalid_param_val,
    make_constraint,
)
from test_encoder import make, reviews
from test_multitask import make as make_multitask

import prefixembed
from prefixembed import (
    ChoiceRanker,
    MultiTaskEncoder,
    PrefixBank,
    PrefixEncoder,
    PrefixSelector,
    TargetHeads,
    inspection,
    interop,
    tasks,
)
from prefixembed.cache import open_cache
from prefixembed.tasks.demo import demo_backbone


def is_public(function, module):
    return function.__module__ == module.__name__ and not function.__name__.startswith("_")


ESTIMATORS = [
    ChoiceRanker,
    MultiTaskEncoder,
    PrefixBank,
    PrefixEncoder,
    PrefixSelector,
    TargetHeads,
]
FUNCTIONS = [
    open_cache,
    *(f for f in vars(interop).values() if inspect.isfunction(f) and is_public(f, interop)),
    *(f for f in map(vars(tasks).get, tasks.__all__) if inspect.isfunction(f)),
    *map(vars(inspection).get, inspection.__all__),
    *(f for name in prefixembed.__all__ if inspect.isfunction(f := getattr(prefixembed, name))),
]
# Checked by themselves, as data are.
DATA = {"dataset", "search", "X", "y"}


class BadType:
    def __repr__(self):
        return "BAD"


def wrong_values(constraints):
    yield BadType()
    for constraint in map(make_constraint, constraints):
        with contextlib.suppress(NotImplementedError):
            yield generate_invalid_param_val(constraint)


def estimator_cases():
    for kind in ESTIMATORS:
        for name, constraints in kind._parameter_constraints.items():
            for k, value in enumerate(wrong_values(constraints)):
                yield pytest.param(kind, name, value, id=f"{kind.__name__}-{name}-{k}")


def function_cases():
    for function in dict.fromkeys(FUNCTIONS):
        for name, constraints in getattr(function, "_skl_parameter_constraints", {}).items():
            if name in DATA:
                continue
            for k, value in enumerate(wrong_values(constraints)):
                yield pytest.param(function, name, value, id=f"{function.__name__}-{name}-{k}")


def use(estimator):
    if isinstance(estimator, PrefixBank):
        estimator.transform(["a text"])
    elif isinstance(estimator, (MultiTaskEncoder, TargetHeads)):
        estimator.fit({"a": (["a", "b"] * 4, [0, 1] * 4)})
    elif isinstance(estimator, ChoiceRanker):
        estimator.fit([("a", ["b", "c"])] * 2, [0, 1])
    else:
        estimator.fit(["a", "b"] * 4, [0, 1] * 4)


def test_every_parameter_is_checked():
    for kind in ESTIMATORS:
        names = list(inspect.signature(kind).parameters)
        assert set(names) == set(kind._parameter_constraints), kind
        assert "no_validation" not in kind._parameter_constraints.values()
    for function in FUNCTIONS:
        names = set(inspect.signature(function).parameters) - DATA
        known = set(getattr(function, "_skl_parameter_constraints", {})) - DATA
        assert names == known or function is demo_backbone, function


@pytest.mark.parametrize(("kind", "name", "value"), estimator_cases())
def test_wrong_parameters_of_estimators_are_named(tiny, kind, name, value):
    params = {
        PrefixBank: {"prefixes": {}, "backbone": tiny()},
        ChoiceRanker: {"encoder": PrefixBank({})},
        PrefixSelector: {"estimator": PrefixBank({})},
        TargetHeads: {"bank": PrefixBank({})},
    }.get(kind, {"backbone": tiny()})
    estimator = kind(**params).set_params(**{name: value})
    message = rf"The '{name}' parameter of {kind.__name__} must be .* Got {re.escape(repr(value))}"
    with pytest.raises(InvalidParameterError, match=message):
        use(estimator)


@pytest.mark.parametrize(("function", "name", "value"), function_cases())
def test_wrong_parameters_of_functions_are_named(tmp_path, function, name, value):
    given = {
        "bank": PrefixBank({}), "estimator": PrefixBank({}), "name_or_path": "b", "tasks": {},
        "name": "sst2", "cache": "memory", "folder": tmp_path, "prefix": object(), "state": {},
        "backbone": "b", "X": [], "y": [], "dataset": [], "column": "text", "out": tmp_path,
    }  # fmt: skip
    wanted = inspect.signature(function).parameters
    if function is tasks.load_docstring_task:
        given["name"] = "kind"
    if function is prefixembed.embed_dataset:
        given["encoder"] = PrefixBank({})
    params = {key: some for key, some in given.items() if key in wanted} | {name: value}
    message = rf"The '{name}' parameter of \S*{function.__name__} must be"
    if "prefix" in params and name != "prefix":
        message = "The 'prefix' parameter"  # the first that is wrong
    with pytest.raises(InvalidParameterError, match=message):
        function(**params)


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([-math.inf, math.inf, math.nan, -0.0, 1e-320, 1e300, 0.5, 2**63, -(2**63)]),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.sampled_from([(), [], {}, set(), np.float32(0.5), np.int64(3), np.bool_(True), "auto"]),
)


LARGE = ("max_epochs", "prefix_length", "reparameterize")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make_one", [make, make_multitask])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_value_works_or_is_refused_by_name(tiny, make_one, data):
    estimator = make_one(tiny(), max_epochs=1)
    known = sorted(set(estimator.get_params()) - {"cache", "checkpoint_dir"})
    name = data.draw(st.sampled_from(known))
    value = data.draw(odd)
    # As long, or as large, as one asks for.
    assume(
        not (
            name in ("max_epochs", "prefix_length", "reparameterize") and repr(value) == str(2**63)
        )
    )
    estimator.set_params(**{name: value})
    texts, labels = reviews(8)
    said = ""
    vectors = np.zeros(0)
    try:
        if make_one is make:
            estimator.fit(texts, labels)
        else:
            estimator.fit({"a": (texts, labels)})
        vectors = estimator.transform(texts if estimator.output == "texts" else [["a"]])
    except FloatingPointError as error:
        said = f"{name}: {error}" if "learning_rate" in str(error) else str(error)
    except (ValueError, OSError) as error:
        said = str(error)
    assert not said or name in said or repr(value) in said, (name, value, said)
    assert np.isfinite(vectors).all()
