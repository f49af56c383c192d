"""Causal Forcing's own `inference.py`, at several step counts from the same seeds.

Run from the trainer's checkout; all arguments but these two are the trainer's own:

    python /path/to/salt-losses/examples/causal_forcing/sample_salt.py \\
        --steps 1 2 4 --first_chunk_steps 4 \\
        --config_path configs/causal_forcing_dmd_chunkwise.yaml --use_ema \\
        --checkpoint_path logs/salt/checkpoint_model_002000/model.pt \\
        --data_path prompts/demos.txt --output_folder videos

Each prompt gives one video per step count: `...-1step-first4.mp4`, `...-2steps-first4.mp4`, ...
"""

from salt_losses.adapters import sample

if __name__ == "__main__":
    sample(__doc__)
