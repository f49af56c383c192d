"""LongLive v1.0's own `inference.py`, at several step counts from the same seeds.

Run from the trainer's checkout; all arguments but these two are the trainer's own:

    python /path/to/salt-losses/examples/longlive/sample_salt.py \\
        --steps 1 2 4 --first_chunk_steps 4 \\
        --config_path configs/longlive_inference.yaml

Each prompt gives one video per step count: `...-1step-first4.mp4`, `...-2steps-first4.mp4`, ...
"""

from salt_losses.adapters import sample

if __name__ == "__main__":
    sample(__doc__)
