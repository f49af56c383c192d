"""LongLive 2.0 with Salt: the trainer's own `train.py`, and one argument more.

Run from the trainer's checkout; all arguments but `--salt_config` are the trainer's own:

    torchrun --nproc_per_node=8 /path/to/salt-losses/examples/longlive2/train_salt.py \\
        --config_path configs/train_dmd.yaml --logdir logs/salt \\
        --salt_config /path/to/salt-losses/examples/longlive2/salt.yaml
"""

from salt_losses.adapters import launch, longlive2

if __name__ == "__main__":
    launch(longlive2, __doc__)
