"""Self Forcing with Salt: the trainer's own `train.py`, and one argument more.

Run from the trainer's checkout; all arguments but `--salt_config` are the trainer's own:

    torchrun --nproc_per_node=8 /path/to/salt-losses/examples/self_forcing/train_salt.py \\
        --config_path configs/self_forcing_dmd.yaml --logdir logs/salt \\
        --salt_config /path/to/salt-losses/examples/self_forcing/salt.yaml
"""

from salt_losses.adapters import launch, self_forcing

if __name__ == "__main__":
    launch(self_forcing, __doc__)
