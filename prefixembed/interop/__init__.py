"""Prefixes from and for other libraries, one file per library."""

from prefixembed.interop._to_sentence_transformer import to_sentence_transformer
from prefixembed.interop.adapters import load_adapters
from prefixembed.interop.mteb import to_mteb
from prefixembed.interop.p_tuning import load_p_tuning
from prefixembed.interop.peft import load_peft, save_peft

__all__ = [
    "load_adapters",
    "load_p_tuning",
    "load_peft",
    "save_peft",
    "to_mteb",
    "to_sentence_transformer",
]
