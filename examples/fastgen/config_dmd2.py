"""FastGen's DMD2 of the bidirectional Wan 2.1 1.3B, with Salt.

FastGen reads configs in its own folders only: README.md has the commands.
"""

from fastgen.configs.experiments.WanT2V import config_dmd2
from fastgen.utils import LazyCall

from salt_losses.integrations.fastgen import SaltDMD2Model


def create_config():
    config = config_dmd2.create_config()
    config.model_class = LazyCall(SaltDMD2Model)(
        config=None,
        salt={"step_counts": [2, 4, 8], "probs": [0.2, 0.4, 0.4], "sc": {"weight": 1.0}},
    )
    config.log_config.group = "wan_dmd2_salt"
    return config
