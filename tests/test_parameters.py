"""Wrong values of each public parameter are refused with its name."""

import inspect
import math
import re

import numpy as np
import pytest
from helpers import make_encoder, make_multitask, reviews
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils._param_validation import (
    InvalidParameterError,
    _ArrayLikes,
    _Booleans,
    _Callables,
    _InstancesOf,
    _NoneConstraint,
    _RandomStates,
    generate_invalid_param_val,
    make_constraint,
)

import prefixembed
from prefixembed import (
    ChoiceRanker,
    MultiTaskEncoder,
    PrefixBank,
    PrefixSelector,
    TargetHeads,
    inspection,
    interop,
    tasks,
)
from prefixembed import bank as bank_module
from prefixembed import encoder as encoder_module
from prefixembed import multitask as multitask_module
from prefixembed.cache import open_cache
from prefixembed.tasks.demo import demo_backbone

ESTIMATORS = [
    kind
    for name in prefixembed.__all__
    if hasattr(kind := getattr(prefixembed, name), "_parameter_constraints")
]
FUNCTIONS = [
    open_cache,
    *(
        function
        for module in (prefixembed, inspection, interop, tasks)
        for name in module.__all__
        if inspect.isfunction(function := getattr(module, name))
    ),
]
# Data have checks of their own.
DATA = {"dataset", "search", "X", "y"}


# Values of these are wrong by their type alone: scikit-learn makes no others.
OF_A_TYPE = (_ArrayLikes, _Booleans, _Callables, _InstancesOf, _NoneConstraint, _RandomStates)


class BadType:
    def __repr__(self):
        return "BAD"


def wrong_values(constraints):
    yield BadType()
    for constraint in map(make_constraint, constraints):
        if not isinstance(constraint, OF_A_TYPE):
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


def test_each_parameter_has_constraints():
    for kind in ESTIMATORS:
        names = list(inspect.signature(kind).parameters)
        assert set(names) == set(kind._parameter_constraints), kind
        assert "no_validation" not in kind._parameter_constraints.values()
    for function in FUNCTIONS:
        parameters = inspect.signature(function).parameters.values()
        names = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - DATA
        known = set(getattr(function, "_skl_parameter_constraints", {})) - DATA
        assert names == known or function is demo_backbone, function


@pytest.mark.parametrize(("kind", "name", "value"), estimator_cases())
def test_wrong_parameters_of_estimators_are_refused_by_name(tiny, kind, name, value):
    params = {
        PrefixBank: {"prefixes": {}, "backbone": tiny()},
        ChoiceRanker: {"encoder": PrefixBank({})},
        PrefixSelector: {"estimator": PrefixBank({})},
        TargetHeads: {"bank": PrefixBank({})},
    }.get(kind, {"backbone": tiny()})
    message = rf"The '{name}' parameter of {kind.__name__} must be .* Got {re.escape(repr(value))}"
    with pytest.raises(InvalidParameterError, match=message):
        use(kind(**params).set_params(**{name: value}))


@pytest.mark.parametrize(("function", "name", "value"), function_cases())
def test_wrong_parameters_of_functions_are_refused_by_name(tmp_path, function, name, value):
    given = {
        "bank": PrefixBank({}), "estimator": PrefixBank({}), "name_or_path": "b", "tasks": {},
        "name": "sst2", "cache": "memory", "folder": tmp_path, "prefix": object(), "state": {},
        "backbone": "b", "X": [], "y": [], "dataset": [], "column": "text", "out": tmp_path,
    }  # fmt: skip
    accepted = inspect.signature(function).parameters
    if function is tasks.load_docstring_task:
        given["name"] = "kind"
    if function is prefixembed.embed_dataset:
        given["encoder"] = PrefixBank({})
    params = {key: given[key] for key in accepted if key in given} | {name: value}
    message = rf"The '{name}' parameter of \S*{function.__name__} must be"
    if "prefix" in params and name != "prefix":
        message = "The 'prefix' parameter"  # the first wrong one is reported
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

# Any positive value of these is valid, but a very large one takes too much time or memory.
UNBOUNDED = ("ffn_length", "max_steps", "prefix_length", "reparameterize")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [make_encoder, make_multitask])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_value_works_or_is_refused_by_name(tiny, make, data):
    estimator = make(tiny(), max_steps=2)
    known = sorted(set(estimator.get_params()) - {"cache", "checkpoint_dir"})
    name = data.draw(st.sampled_from(known))
    value = data.draw(odd)
    assume(name not in UNBOUNDED or repr(value) != str(2**63))
    estimator.set_params(**{name: value})
    texts, labels = reviews(8)
    message = ""
    vectors = np.zeros(0)
    try:
        if make is make_encoder:
            estimator.fit(texts, labels)
        else:
            estimator.fit({"a": (texts, labels)})
        vectors = estimator.transform(texts if estimator.output == "texts" else [["a"]])
    except FloatingPointError as error:
        message = f"{name}: {error}" if "learning_rate" in str(error) else str(error)
    except (ValueError, OSError) as error:
        message = str(error)
    assert not message or name in message or repr(value) in message, (name, value, message)
    assert np.isfinite(vectors).all()


class Foreign:
    """An object of an unknown kind that equals itself alone, also after a copy."""


ODD = [
    None, True, 0, -7, 3.5, math.nan, math.inf, 10**400, 1j, "", "a", b"a", (), [1], ["a"], {},
    {1: 2}, {"a": None}, {"a": [1]}, {1}, range(2), np.float32(0.5), np.array([1, 2]), np.zeros(0),
    np.datetime64("2020"), object, Foreign(), len,
]  # fmt: skip


def made(kind, tiny, **params):
    bank = PrefixBank({}, backbone=tiny())
    own = {
        PrefixBank: {"prefixes": {}, "backbone": tiny()},
        ChoiceRanker: {"encoder": bank},
        PrefixSelector: {
            "estimator": make_pipeline(bank, LogisticRegression()),
            "cv": 2,
            "error_score": "raise",
        },
        TargetHeads: {"bank": bank},
    }.get(kind, {"backbone": tiny(), "max_steps": 1})
    return kind(**{**own, **params})


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_odd_values_are_kept_by_clones_and_refused_by_name_in_fit(tiny, monkeypatch, kind):
    # Whatever is accepted is not used here.
    for module in (encoder_module, multitask_module):
        monkeypatch.setattr(module, "load_backbone", lambda *args: _stop())
    monkeypatch.setattr(bank_module.PrefixBank, "_embed", lambda *args: _stop())
    of_sklearn = {"scoring", "cv", "n_jobs", "error_score", "verbose"}
    for name in inspect.signature(kind).parameters:
        for value in () if kind is PrefixSelector and name in of_sklearn else ODD:
            estimator = made(kind, tiny, **{name: value})
            # An array or an object is copied by clone.
            copied = clone(estimator).get_params(deep=False)[name]
            assert type(copied) is type(estimator.get_params(deep=False)[name])
            repr(estimator)
            hasattr(estimator, "predict_proba")
            message = ""
            try:
                use(estimator)
            except StopError:
                continue
            except (TypeError, ValueError) as error:
                message = str(error)
            if "StopError" not in message:  # scikit-learn reports failed fits
                assert name in message or not message, (name, value, message)


class StopError(Exception):
    pass


def _stop():
    raise StopError


@pytest.mark.parametrize("prefixes", [[1], 1, None, "a", {"a": 1}, {1: 2}])
def test_banks_of_wrong_prefixes_are_refused_by_whatever_uses_them(tiny, prefixes):
    bank = PrefixBank(prefixes, backbone=tiny())
    assert clone(bank).prefixes == prefixes
    assert not hasattr(bank, "n_features_out_")
    assert "PrefixBank" in bank._repr_html_()
    data = (["a", "b"] * 4, [0, 1] * 4)
    heads = make_pipeline(bank, LogisticRegression())
    for refuse in (
        lambda: bank.fit(["a"]),
        lambda: bank.transform(["a"]),
        lambda: bank.combination(),
        lambda: TargetHeads(bank).fit({"a": data}),
        lambda: ChoiceRanker(bank).fit([("a", ["b", "c"])], [0]),
        lambda: PrefixSelector(heads, cv=2, error_score="raise").fit(*data),
    ):
        with pytest.raises(ValueError, match="prefixes"):
            refuse()
    if not isinstance(prefixes, dict):
        for refuse in (
            bank.keys, bank.values, bank.items, lambda: len(bank), lambda: list(bank),
            lambda: "a" in bank, lambda: bank["a"], lambda: bank.remove("a"),
            lambda: bank.add("a", None), lambda: prefixembed.prefix_subsets(bank),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="prefixes must be a dict"):
                refuse()
