"""Rollouts of the Self Forcing family.

`steps` gives a rollout its step list and `calls` watches its generator calls and exit draws.
`student`, `reference` and `extra` are the rollouts that terms see, the alignment's, and a second
one for a discriminator; `whole` generates all frames at once. `scores` watches the score networks.
"""
