"""Causal Forcing with Salt: the trainer's own `train.py`, and one argument more.

Run from the trainer's checkout; all arguments but `--salt_config` are the trainer's own:

    torchrun --nproc_per_node=8 /path/to/salt-losses/examples/causal_forcing/train_salt.py \\
        --config_path configs/causal_forcing_dmd_chunkwise.yaml --logdir logs/salt \\
        --salt_config /path/to/salt-losses/examples/causal_forcing/salt.yaml
"""

from salt_losses.adapters import causal_forcing, launch

if __name__ == "__main__":
    launch(causal_forcing, __doc__)
