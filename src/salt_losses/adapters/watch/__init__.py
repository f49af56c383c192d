"""The record of a run: metrics and alarms, Salt's state in each `checkpoint`, and step sweeps.

A `sweep` samples (`averages`: with the averaged weights), measures (`sweep_measures`) and draws
(`sheet`).
"""
