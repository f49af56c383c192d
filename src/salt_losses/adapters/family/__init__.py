"""How Salt is attached to a trainer of the Self Forcing family.

`attach` looks for the `seams` and makes a `handle`; `losses` is what the trainer calls then, by way
of a `wrapper`; `clock` and `updates` know which iteration it is.
"""
