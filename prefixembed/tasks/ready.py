"""A bank of prefixes that come with the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefixembed.bank import PrefixBank
from prefixembed.tasks.demo import demo_backbone

FOLDER = Path(__file__).parent / "demo_bank"


def demo_bank(**params: Any) -> PrefixBank:
    """Return a bank for the demo backbone, whose prefixes come with the library.

    The prefixes were learned on SST-2 (sentiment of reviews), QNLI (whether a sentence answers a
    question), SICK (entailment), CoLA (acceptable sentences) and STS-B (similarity). The file
    ``README.md`` beside them says on how many texts, with which scores, and under which terms the
    data are to be had. ``examples/make_demo_bank.py`` made them.

    Read more in the :doc:`user guide </guide/tasks>`.

    .. versionadded:: 0.1

    Parameters
    ----------
    **params : dict
        Parameters of the bank, such as ``active`` or ``device``.

    Returns
    -------
    bank : PrefixBank
        Its prefixes are ``"sst2"``, ``"qnli"``, ``"sick"``, ``"cola"`` and ``"stsb"``.

    Raises
    ------
    ImportError
        If the ``demo`` extra is not installed.
    ValueError
        If a parameter is wrong.

    See Also
    --------
    demo_backbone : The folder of the backbone.

    Examples
    --------
    >>> from prefixembed.tasks import demo_bank
    >>> list(demo_bank())
    ['sst2', 'qnli', 'sick', 'cola', 'stsb']
    >>> demo_bank(active=["sst2"]).transform(["A film with a heart."]).shape
    (1, 384)
    """
    # The saved folder names no place on this machine.
    return PrefixBank.load(FOLDER, **{"backbone": demo_backbone(), **params})
