"""What happens in a rollout of the Self Forcing family.

`planned`, `steps` and `first_chunk` give it its step lists, and `followed` looks whether it takes
them; `whole` is one of all frames at once; `rollout` holds on to it, with a `tap` at the
generator and a `reference` beside it; of what is `scored`, the score networks' `features` make the
alignment and show the `opponent`.
"""
