"""The parts of a run that every trainer needs, without a trainer's names: terms, adapters and
integrations build on it.

A rollout: `blocks`, `step_lists`, `frozen`. A run: `health`, `alarms`, `saved_settings`,
`optimizer_steps`. For both: `patches`, `streams`, `agreement`.
"""
