"""Salt for LightX2V's trainer (github.com/ModelTC/LightX2V, `lightx2v_train`).

It extends DMD of videos, autoregressive and bidirectional.

Its `train.py` with the two trainers registered, in the folder of that script:

    python -m salt_losses.integrations.lightx2v --config config.yaml

Name one in the config, with Salt's settings, those of `SaltConfig.from_mapping`:

    training:
        method: salt_video_ar_dmd    # or salt_video_dmd
        dmd:
            salt: {sc: {weight: 1.0}}
            ... # as before

`denoising_step_list` is the list of as many steps as it holds; the lists of other step counts are
read off the same table (`warp_denoising_step: true`), or count in thousandths.
"""

from .trainers import SaltVideoArDmdTrainer, SaltVideoDmdTrainer

__all__ = ["SaltVideoArDmdTrainer", "SaltVideoDmdTrainer"]
