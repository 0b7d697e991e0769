"""The active prefixes of a bank, and how they are combined into one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from prefixembed._embed.representation import Representation
from prefixembed._model.attention import attention_dtype
from prefixembed._model.extension import Extension, PrefixTensors, combine
from prefixembed._model.slots import SlotTensors
from prefixembed._utils.parameters import Number
from prefixembed.backbone import Backbone, load_backbone, own_facts
from prefixembed.prefix import Prefix
from prefixembed.reading import PAIRS, Reading

_WEIGHT = Number(0, None, closed="neither")
# What all prefixes of a bank have in common, active or not: they come from one backbone.
_OF_BACKBONE = ("fingerprint", "layout", "n_features")


# What decides vectors, as far as it is known without loading the backbone: its fingerprint or None,
# its name and revision, and digests of the rest. A tuple, since pickles of banks hold it.
Identity = tuple[str | None, tuple[str, str | None], tuple[str, ...]]


def agree(one: Identity, other: Identity) -> bool:
    """Return whether nothing that is known of both differs."""
    known = {one[0], other[0]} - {None}
    same_backbone = len(known) == 1 if known else one[1] == other[1]
    return same_backbone and one[2] == other[2]


@dataclass(frozen=True)
class Combination:
    """Describe the active prefixes of a bank, and how texts are read with them.

    .. versionadded:: 0.1

    Parameters
    ----------
    names : tuple of str
        Names of the active prefixes, in the order of the bank.
    prefixes : tuple of Prefix
        The active prefixes.
    weights : tuple of float
        Factor on the attention mass of each, and on what its slots add.
    combine : {"concat", "mean"}
        How they are combined.
    reading : Reading
        How texts are read.
    backbone : str
        Hub name or folder of the backbone.
    revision : str or None
        Its revision on the Hub.
    n_features : int
        Number of features of the backbone.
    fingerprint : str or None
        Fingerprint of the backbone, if a prefix of the bank knows it.
    conflict : str, default=""
        Why pairs cannot be read: active prefixes were learned on joint pairs and on pairs apart.
    """

    names: tuple[str, ...]
    prefixes: tuple[Prefix, ...]
    weights: tuple[float, ...]
    combine: str
    reading: Reading
    backbone: str
    revision: str | None
    n_features: int
    fingerprint: str | None
    conflict: str = ""

    def pairs_reading(self) -> Reading:
        """Return how pairs are read, which follows the backbone if no active prefix saw pairs.

        Returns
        -------
        reading : Reading
            With ``pairs`` decided.

        Raises
        ------
        ValueError
            If active prefixes were learned on pairs that were read in different ways.
        """
        if self.conflict:
            raise ValueError(self.conflict)
        if self.reading.pairs is not None:
            return self.reading
        _, own = own_facts(self.backbone, self.revision)
        return replace(self.reading, pairs=own.pairs or "joint")

    def load_backbone(self, dtype: str, device: str) -> Backbone:
        """Load the backbone, and check that prefixes and reading fit it.

        Parameters
        ----------
        dtype, device : str
            As :func:`~prefixembed.load_backbone` takes them.

        Returns
        -------
        backbone : Backbone
            Shared by all estimators of the process.
        """
        backbone = load_backbone(self.backbone, self.revision, dtype, device)
        for name, prefix in zip(self.names, self.prefixes, strict=True):
            backbone.check(prefix, f"prefix {name!r}")
        if self.fingerprint not in (None, backbone.fingerprint):
            raise ValueError(
                f"the prefixes were learned on a backbone with fingerprint "
                f"{str(self.fingerprint)[:12]}, but backbone {backbone.name!r} has fingerprint "
                f"{backbone.fingerprint[:12]}: weights, configuration or tokenizer differ"
            )
        backbone.check_reading(self.reading)
        return backbone

    def extension(self, backbone: Backbone) -> Extension | None:
        """Return what the prefixes add to the layers of a backbone.

        Parameters
        ----------
        backbone : Backbone
            Backbone that the prefixes were learned on.

        Returns
        -------
        extension : Extension or None
            For :meth:`Backbone.forward <prefixembed.Backbone.forward>`. None without prefixes.
        """
        # Sorted by digest, so that the order of prefixes does not change any bit.
        weighted = sorted(
            zip(self.prefixes, self.weights, strict=True),
            key=lambda pair: (pair[0].digest, pair[1]),
        )
        tensors = [prefix_tensors(prefix, backbone) for prefix, _ in weighted]
        weights = [weight for _, weight in weighted]
        return combine(tensors, weights, self.combine, backbone.activation, backbone.dtype)

    def identity(self, of_pairs: bool, *outputs: str) -> Identity:
        """Return what decides vectors, as far as it is known without loading the backbone.

        Parameters
        ----------
        of_pairs : bool
            Whether the vectors are those of pairs.
        *outputs : str
            Forms of output, which decide vectors too.

        Returns
        -------
        identity : tuple
            To compare with the one of another moment by :func:`agree`.
        """
        reading = self.reading if of_pairs else replace(self.reading, pairs=None)
        digest = replace(self, reading=reading).representation("", "").digest
        return self.fingerprint, (self.backbone, self.revision), (digest, *outputs)

    def representation(self, fingerprint: str, dtype: str) -> Representation:
        """Return what decides a vector on a backbone.

        Parameters
        ----------
        fingerprint : str
            Fingerprint of the backbone.
        dtype : str
            Dtype that it computes in.

        Returns
        -------
        representation : Representation
            Combinations with equal digests give equal vectors.
        """
        digests = (prefix.digest for prefix in self.prefixes)
        return Representation(
            fingerprint=fingerprint,
            prefixes=tuple(sorted(zip(digests, self.weights, strict=True))),
            combine=self.combine,
            reading=self.reading,
            dtype=dtype,
        )


def prefix_tensors(prefix: Prefix, backbone: Backbone) -> PrefixTensors:
    """Return a prefix as tensors on the device of a backbone."""
    dtype = attention_dtype(backbone.device, backbone.dtype)
    keys_values = torch.tensor(prefix.keys_values, device=backbone.device, dtype=dtype)
    if prefix.slots is None:
        return PrefixTensors(keys_values)
    arrays = (prefix.slots.keys, prefix.slots.biases, prefix.slots.values)
    slots = SlotTensors(*(torch.tensor(array, device=backbone.device) for array in arrays))
    return PrefixTensors(keys_values, slots)


def check_selection(
    prefixes: Mapping[str, Prefix],
    active: Sequence[str] | None,
    weights: float | Mapping[str, float] | None,
    backbone: str | None,
) -> tuple[list[str], tuple[float, ...]]:
    """Return the names and weights of the active prefixes, without reading the backbone's files.

    Raises ValueError if prefixes come from different backbones, a name is unknown, a weight is
    wrong, or the bank does not know its backbone.
    """
    _check_alike(prefixes, _OF_BACKBONE)
    if backbone is None and not prefixes:
        raise ValueError("backbone must be given if no prefix names one")
    names = _active_names(prefixes, active)
    return names, _weights(prefixes, names, weights)


def combine_prefixes(
    prefixes: Mapping[str, Prefix],
    active: Sequence[str] | None,
    weights: float | Mapping[str, float] | None,
    combine: str,
    backbone: str | None,
    revision: str | None,
    overrides: Mapping[str, Any],
) -> Combination:
    """Return the active prefixes, and the reading that they share.

    `overrides` holds the fields of the reading that the bank decides. Others follow the active
    prefixes, or the backbone if none is active. Raises ValueError as :func:`check_selection` does,
    and if active prefixes disagree on the reading.
    """
    names, factors = check_selection(prefixes, active, weights, backbone)
    # An active one, so that inactive prefixes do not decide where the backbone is looked for.
    known = next((prefixes[name] for name in (*names, *prefixes)), None)
    if backbone is None and known is not None:
        backbone, revision = known.backbone, revision or known.revision
    assert backbone is not None
    chosen = {name: prefixes[name] for name in names}
    if chosen:
        reading, conflict = _shared_reading(chosen, overrides)
        n_features = next(iter(chosen.values())).n_features
    else:
        n_features, reading = own_facts(backbone, revision)
        conflict = ""
    return Combination(
        names=tuple(names),
        prefixes=tuple(chosen.values()),
        weights=factors,
        combine=combine,
        reading=replace(reading, **overrides),
        backbone=backbone,
        revision=revision,
        n_features=n_features,
        fingerprint=None if known is None else known.fingerprint,
        conflict="" if "pairs" in overrides else conflict,
    )


def _shared_reading(
    chosen: Mapping[str, Prefix], overrides: Mapping[str, Any]
) -> tuple[Reading, str]:
    """Return the reading of the active prefixes, and why it cannot read pairs."""
    readings = {name: prefix.reading for name, prefix in chosen.items()}
    # The longest limit reads every text as far as any prefix has seen; pairs matter for pairs only.
    lenient = {"max_length", "pairs", *overrides}
    strict = [field.name for field in fields(Reading) if field.name not in lenient]
    _check_alike(readings, strict)
    by_pairs = {reading.pairs: name for name, reading in readings.items()}
    learned = [pairs for pairs in PAIRS if pairs in by_pairs]
    conflict = ""
    if len(learned) > 1:
        conflict = (
            "pairs='auto' follows the active prefixes, and they differ: "
            + ", ".join(f"{by_pairs[pairs]!r} was learned with {pairs!r}" for pairs in learned)
            + "; set pairs, or switch one of them off"
        )
    reading = replace(
        next(iter(readings.values())),
        max_length=max(reading.max_length for reading in readings.values()),
        pairs=learned[0] if len(learned) == 1 else None,
    )
    return reading, conflict


def _check_alike(values: Mapping[str, Any], attributes: Sequence[str]) -> None:
    """Check that prefixes, or their readings, agree with the first one in some attributes."""
    names = list(values)
    for name in names[1:]:
        for attribute in attributes:
            one, other = values[names[0]], values[name]
            if getattr(one, attribute) != getattr(other, attribute):
                raise ValueError(
                    f"prefixes {names[0]!r} and {name!r} cannot be combined, their {attribute} "
                    f"differs: {_describe(one, attribute)} of {names[0]!r} and "
                    f"{_describe(other, attribute)} of {name!r}"
                )


def _describe(value: Any, attribute: str) -> str:
    if attribute == "fingerprint":
        return f"{value.fingerprint[:12]!r} (backbone {value.backbone!r})"
    if attribute == "layout":
        return f"{value.layout} (layers, heads, head_dim)"
    return repr(getattr(value, attribute))


def _active_names(prefixes: Mapping[str, Prefix], active: Sequence[str] | None) -> list[str]:
    if active is None:
        return list(prefixes)
    for name in active:
        if not isinstance(name, str) or name not in prefixes:
            raise ValueError(f"active has {name!r}, which is not one of {list(prefixes)}")
    if len(set(active)) < len(active):
        raise ValueError(f"active has a name twice: {list(active)}")
    return list(active)


def _weights(
    prefixes: Mapping[str, Prefix],
    names: Sequence[str],
    weights: float | Mapping[str, float] | None,
) -> tuple[float, ...]:
    if not isinstance(weights, Mapping):
        return (1.0 if weights is None else float(weights),) * len(names)
    for name, weight in weights.items():
        if name not in prefixes:
            raise ValueError(f"weights has {name!r}, which is not one of {list(prefixes)}")
        if isinstance(weight, bool) or not _WEIGHT.is_satisfied_by(weight):
            raise ValueError(f"weights[{name!r}] must be a number above 0, got {weight!r}")
    return tuple(float(weights.get(name, 1.0)) for name in names)
