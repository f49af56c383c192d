"""DMD and Salt's self-consistency term in a loop of your own: two moons, a minute on one core."""

import copy

import matplotlib.pyplot as plt
import torch
from torch import nn

from salt_losses import (
    add_noise,
    backward_simulation,
    consistency_sample,
    critic_loss,
    dmd_grad,
    dmd_loss,
    semigroup_defect_loss,
    shortcut_triple_sampler,
    step_schedule,
    velocity_to_x0,
)

torch.set_num_threads(1)  # the networks are small: more threads only wait for each other
torch.manual_seed(0)
rng = torch.Generator().manual_seed(0)
train_times, inference_times = step_schedule(8), step_schedule(4)


def data(count):  # points [B, 2], and in the place of a text: which of the two moons
    text, angle = torch.randint(2, (count,)), torch.pi * torch.rand(count)
    x0 = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1) * (1 - 2 * text)[:, None]
    return x0 + 0.05 * torch.randn(count, 2), text


class Network(nn.Module):  # the velocity, noise - x0; at t = 1 all is noise
    def __init__(self):
        super().__init__()
        inner = [nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
        self.layers = nn.Sequential(nn.Linear(7, 128), nn.SiLU(), *inner, nn.Linear(128, 2))

    def forward(self, x, t, text):
        times = torch.stack([t, (torch.pi * t).sin(), (torch.pi * t).cos()], 1)
        return self.layers(torch.cat([x, times, torch.eye(2)[text]], 1))


def flow_loss(network, x0, text):  # flow matching: the teacher's loss, and the critic's
    t, noise = torch.rand(len(x0)), torch.randn_like(x0)
    return critic_loss(network(add_noise(x0, noise, t), t, text), x0, noise)


def dmd_of(x0, text):  # distribution matching (eq. 4)
    t, noise = torch.rand(len(x0)), torch.randn_like(x0)
    with torch.no_grad():
        x_t = add_noise(x0, noise, t)
        fake, real = (velocity_to_x0(x_t, f(x_t, t, text), t) for f in (fake_score, teacher))
    return dmd_loss(x0, dmd_grad(fake, real, x0, none_finite="nan"))


teacher = Network()
optimizer = torch.optim.Adam(teacher.parameters(), 2e-3)
for _ in range(2000):
    optimizer.zero_grad()
    flow_loss(teacher, *data(512)).backward()
    optimizer.step()

generator, fake_score = copy.deepcopy(teacher), copy.deepcopy(teacher)


def velocity(x, t):  # of the texts at hand; times in the network's own dtype
    return generator(x, t.to(x.dtype), text)


generator_optimizer = torch.optim.Adam(generator.parameters(), 2e-4)
critic_optimizer = torch.optim.Adam(fake_score.parameters(), 1e-3)
for iteration in range(4000):
    text = data(512)[1]
    # Mixed steps: a random step of a rollout of 2, 4 or 8 steps.
    times = step_schedule((2, 4, 8)[torch.randint(3, (), generator=rng)])
    exit_step = int(torch.randint(len(times) - 1, (), generator=rng))
    x_s = backward_simulation(velocity, torch.randn(512, 2), times, exit_step, generator=rng)
    t_s = times[exit_step].float().expand(512)

    if iteration % 4 == 0:
        generator_optimizer.zero_grad()
        v_s = velocity(x_s, t_s)
        dmd = dmd_of(velocity_to_x0(x_s, v_s, t_s), text)
        triple = shortcut_triple_sampler(t_s, train_times, inference_times, generator=rng)
        sc = semigroup_defect_loss(velocity, x_s, triple, v_s=v_s)
        (dmd + 1.0 * sc).backward()
        if (dmd + sc).isfinite():  # leaves out this update if the critic has diverged
            generator_optimizer.step()
    else:
        with torch.no_grad():
            x0 = velocity_to_x0(x_s, velocity(x_s, t_s), t_s)
        critic_optimizer.zero_grad()
        flow_loss(fake_score, x0, text).backward()
        critic_optimizer.step()

x0, text = data(2000)
noise, samples = torch.randn(2000, 2), {"data": x0}
for num_steps in (1, 2, 4, 8):
    with torch.no_grad():
        made = consistency_sample(velocity, noise, step_schedule(num_steps), generator=rng)
    samples[f"{num_steps} step{'s' * (num_steps > 1)}"] = made
figure, axes = plt.subplots(1, 5, figsize=(15, 3), sharex=True, sharey=True)
for axis, (title, points) in zip(axes, samples.items()):
    axis.scatter(*points.T, s=2, c=text, cmap="coolwarm")
    axis.set_title(title)
figure.savefig("own_loop.png", dpi=100, bbox_inches="tight")
