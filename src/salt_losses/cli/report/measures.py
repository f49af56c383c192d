"""The numbers that are drawn, and their healthy ranges."""

from __future__ import annotations

from typing import NamedTuple

Range = tuple[float | None, float | None]


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


class Measure(NamedTuple):
    """One number of a run.

    Attributes:
        key: in `salt_metrics.jsonl`.
        axis: what the axis says, with its unit.
        note: how to read it.
        healthy: lowest and highest healthy value, `None`: open.
        origin: where these are from, and on which scale they hold.
        above_start: 0 in it is replaced by where the run began, if that is higher.
    """

    key: str
    title: str
    axis: str
    note: str
    healthy: Range | None = None
    origin: str = ""
    above_start: bool = False


TERMS = (
    Measure(
        "salt/dmd_loss",
        "DMD",
        "loss",
        "Half the mean square of DMD's normalised update direction. It need not fall: the "
        "direction is divided by its own size.",
    ),
    Measure(
        "salt/sc_loss",
        "Self-consistency",
        "mean square",
        "The semigroup defect (eq. 8), before its weight. 0 where the exit step admits no triple.",
    ),
    Measure(
        "salt/align_loss",
        "Alignment",
        "cosine similarity",
        "Token relations beyond the margin (eq. 12), before their weight.",
    ),
    Measure(
        "salt/adv_loss",
        "Adversarial, the student's",
        "loss",
        "Before its weight.",
    ),
    Measure(
        "salt/adv_d_loss",
        "Adversarial, the discriminator's",
        "loss",
        "2 log 2 = 1.39 (non-saturating), 2 (hinge) or log 2 = 0.69 (relativistic) where it cannot "
        "tell.",
    ),
    Measure(
        "salt/adv_gap",
        "The discriminator's gap",
        "logits",
        "The real side's mean logit minus the student's. Near 0: it cannot tell them apart.",
    ),
    # The Wan recipe's, which logs no health.
    Measure(
        "critic/loss",
        "The critic's loss",
        "squared velocity",
        "Flow matching on the student's own samples, of its last update in the iteration.",
    ),
    Measure("student/norm", "The student's gradient", "norm", "Before it is clipped."),
    Measure("critic/norm", "The critic's gradient", "norm", "Before it is clipped."),
)

# Counts of updates that were left out as not finite, each logged with its update.
LEFT_OUT = {
    "student/skipped": "the student",
    "critic/skipped": "the critic",
    "any/skipped": "the student or the critic",
    "salt/adv_skipped": "the discriminator",
}

# What docs/health.md's run that went well stayed within, rounded. It gives no range where a
# trainer's latents have another scale: motion, losses, norms.
MINIATURE = (
    "of one run of a miniature that went well (300 generator updates, one seed, 2, 4 and 8 steps), "
    "in units of this run's own first updates"
)
HEALTH = (
    Measure(
        "salt/health/dmd_norm",
        "DMD's direction",
        "root mean square",
        "How hard DMD pulls at the rollout's output.",
    ),
    Measure(
        "salt/health/dmd_zeroed",
        "Samples without DMD",
        "share",
        "Their direction had no finite entry, and the trainer made it 0.",
        (None, 0.0),
        "by definition: such a sample trains by the other terms only",
    ),
    Measure(
        "salt/health/sc_norm",
        "The self-consistency gradient",
        "root mean square",
        "At the rollout's output, weighted, in DMD's units.",
    ),
    Measure(
        "salt/health/sc_ratio",
        "Self-consistency to DMD",
        "ratio",
        "The size of the self-consistency term's gradient to that of DMD's.",
        (None, 1.0),
        "by definition, on any scale: at 1 the term pulls as hard as DMD",
    ),
    Measure(
        "salt/health/sc_cosine",
        "Self-consistency and DMD",
        "cosine",
        "Above 0 the two pull the same way, below 0 against each other.",
        (-0.1, None),
        "of one run of a miniature that went well (300 generator updates, one seed); a cosine has "
        "no scale",
    ),
    Measure(
        "salt/health/critic_loss",
        "The critic's error",
        "squared velocity",
        "At the level that the generator's update saw.",
    ),
    Measure(
        "salt/health/critic_lag",
        "The critic's lag",
        "log ratio",
        "Running mean of the logarithm of the critic's error to the teacher's.",
        (None, 0.0),
        "by definition, on any scale: at 0 the critic knows the student's videos as well as the "
        "teacher does; a critic smaller than the teacher starts above 0, and is compared to the "
        "median of its 21st to 60th update and five standard deviations more",
        above_start=True,
    ),
    Measure(
        "salt/health/latent_mean_shift",
        "Shift of the latents' mean",
        "first deviations",
        "Per channel, against the first updates.",
        (None, 0.4),
        MINIATURE,
    ),
    Measure(
        "salt/health/latent_std_ratio",
        "Deviation of the latents",
        "ratio to the first",
        "Falls where samples collapse, rises where they saturate.",
        (0.7, 1.4),
        MINIATURE,
    ),
    Measure(
        "salt/health/motion",
        "Motion",
        "mean difference",
        "Between neighbouring latent frames.",
    ),
    Measure(
        "salt/health/exit_step",
        "Exit step",
        "step",
        "Drawn by the trainer: its mean is (K - 1) / 2.",
    ),
    Measure(
        "salt/health/triples",
        "Chunks with a shortcut triple",
        "chunks",
        "Of a rollout. If there are none, the self-consistency term is 0.",
    ),
)

# From the step sweeps.
AGREEMENT = Measure(
    "sweep/agreement",
    "Cross-step agreement",
    "concordance",
    "Of the latents at two step counts from the same noise. 1: they are the same, 0: unrelated.",
)
DEFECT = Measure(
    "sweep/defect",
    "Defect per interval",
    "relative defect",
    "The semigroup defect along the inference path (eq. 16), for each interval of its grid.",
)
DEVIATION = Measure(
    "sweep/deviation",
    "Deviation by step count",
    "standard deviation",
    "Of the latents per channel. Where the curves part, more steps saturate or wash out what fewer "
    "do not.",
)
