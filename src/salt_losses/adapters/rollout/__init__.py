"""What happens in a rollout of the Self Forcing family.

`steps` and `planned` give it its step list; `calls` watches its generator calls and exit draws, the
one place where both are wrapped. `student`, `reference` and `extra` are three such rollouts: the
one that terms see, the alignment's, and a second one for a discriminator; `whole` is one of all
frames at once. `scored` and `networks` are what the trainer offers of the score networks.
"""
