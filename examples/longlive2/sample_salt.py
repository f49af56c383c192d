"""LongLive 2.0's own `inference.py`, at several step counts from the same seeds.

Run from the trainer's checkout; all arguments but this one are the trainer's own:

    python /path/to/salt-losses/examples/longlive2/sample_salt.py --steps 2 4 8 \\
        --config_path configs/inference.yaml

Each prompt gives one video per step count: `...-2steps.mp4`, `...-4steps.mp4`, ...
"""

from salt_losses.adapters import sample

if __name__ == "__main__":
    sample(__doc__)
