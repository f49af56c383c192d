"""FastGen's Self Forcing of the causal Wan 2.1 1.3B, with Salt.

FastGen reads configs in its own folders only: README.md has the commands.
"""

from fastgen.configs.experiments.WanT2V import config_sf
from fastgen.utils import LazyCall

from salt_losses.integrations.fastgen import SaltSelfForcingModel


def create_config():
    config = config_sf.create_config()
    config.model_class = LazyCall(SaltSelfForcingModel)(
        config=None,
        salt={"step_counts": [2, 4, 8], "probs": [0.2, 0.4, 0.4], "sc": {"weight": 1.0}},
    )
    config.log_config.group = "wan_sf_salt"
    return config
