"""What any trainer needs of Salt, under no trainer's names: adapters and integrations build on it.

A rollout's terms: `defect`, `blocks`, `step_lists`, `adversary`, `frozen`. A run: `health`,
`alarms`. Around them: `patches`, `streams`, `agreement`.
"""
