"""Atomic writes, folders of banks, the Hub, and stores of vectors."""
