"""LongLive v1.0 with Salt: the trainer's own `train.py`, and one argument more.

Run from the trainer's checkout; all arguments but `--salt_config` are the trainer's own:

    torchrun --nproc_per_node=8 /path/to/salt-losses/examples/longlive/train_salt.py \\
        --config_path configs/longlive_train_init.yaml --logdir logs/salt \\
        --salt_config /path/to/salt-losses/examples/longlive/salt.yaml
"""

from salt_losses.adapters import launch, longlive

if __name__ == "__main__":
    launch(longlive, __doc__)
