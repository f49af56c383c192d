"""How a run is watched: `metrics`, kept in `files` by `record`, with Salt's state beside each
`checkpoint`; and from time to time a `sweep`.

A sweep samples (`as_before`: nothing of it stays; `averages`: of the weights), measures
(`sweep_measures`) and draws (`sheet`).
"""
