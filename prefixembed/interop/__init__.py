"""Prefixes from and for other libraries, one module per library."""

from prefixembed.interop.prefixes import (
    load_adapters,
    load_p_tuning,
    load_peft,
    save_peft,
    to_mteb,
)

__all__ = ["load_adapters", "load_p_tuning", "load_peft", "save_peft", "to_mteb"]
