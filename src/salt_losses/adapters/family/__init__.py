"""Attach Salt to a trainer of the Self Forcing family.

`attach` checks the `seams` and makes a `handle`; `losses` has what the trainer then calls.
"""
