"""Salt for FastVideo (github.com/hao-ai-lab/FastVideo): its methods DMD2 and Self Forcing.

Name the class in the config, and put Salt's settings, those of `SaltConfig.from_mapping`, beside
the method's own:

    method:
      _target_: salt_losses.integrations.fastvideo.SaltSelfForcingMethod
      salt: {sc: {weight: 1.0}}
      ... # as before

`dmd_denoising_steps` is the step list of as many steps as it holds; the lists of other step counts
are read off the same table (`warp_denoising_step: true`), or count in thousandths.
"""

from .methods import SaltDMD2Method, SaltSelfForcingMethod

__all__ = ["SaltDMD2Method", "SaltSelfForcingMethod"]
