"""Salt for FastGen (github.com/NVlabs/FastGen): its models DMD2 and Self Forcing.

Name the class in a config, with Salt's settings, those of `SaltConfig.from_mapping`:

    from fastgen.utils import LazyCall as L
    from salt_losses.integrations.fastgen import SaltSelfForcingModel

    config.model_class = L(SaltSelfForcingModel)(config=None, salt={"sc": {"weight": 1.0}})

`model.sample_t_cfg.t_list` is the list of as many steps as it holds, and the lists of other step
counts take its points where they come by them; they begin at the scheduler's `max_t`, as its do.
"""

from .models import SaltDMD2Model, SaltSelfForcingModel

__all__ = ["SaltDMD2Model", "SaltSelfForcingModel"]
