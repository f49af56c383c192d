"""What happens in a rollout of the Self Forcing family.

`planned` and `first_chunk` give it its step lists; `rollout` holds on to it, with a `tap` at the
generator and a `reference` beside it; of what is `scored`, the score networks' `features` make the
alignment and show the `opponent`.
"""
