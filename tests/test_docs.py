"""The README and docs/: their Python runs as it stands, and no name or setting is left out."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from salt_losses import SaltConfig, step_schedule, velocity_to_x0
from salt_losses.adapters import record, self_forcing
from salt_losses.config import BLOCKS
from salt_losses.terms import SelfConsistency
from salt_losses.trainers import TRAINERS, Facts

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
Names = dict[str, Any]
Run = Callable[[Names], Iterator[None]]

# By heading: gives the names that its code takes for granted, and yields once for each block.
RUNS: dict[str, Run] = {}


def code(page: Path) -> list[tuple[str, list[str]]]:
    """The headings that have Python under them, with its blocks."""
    parts = re.split(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    blocks = [
        re.findall(r"^```python\n(.*?)^```", u, re.DOTALL | re.MULTILINE) for u in parts[2::2]
    ]
    return [(heading, found) for heading, found in zip(parts[1::2], blocks) if found]


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page: Path) -> None:
    names: Names = {}
    for heading, blocks in code(page):
        assert heading in RUNS, f"say in RUNS what the code under {heading!r} takes for granted"
        run = RUNS[heading](names)
        for number, block in enumerate(blocks):
            next(run)
            exec(compile(block, f"{page.name}, {heading}, block {number}", "exec"), names)
        assert list(run) == []


def runs(heading: str) -> Callable[[Run], Run]:
    return lambda run: RUNS.setdefault(heading, run)


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 8)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, text: Any = None, kv_cache: Any = None) -> Tensor:
        self.calls += 1
        return self.layer(torch.cat([x, t.to(x)[:, None]], dim=1))


@runs("Add the self-consistency term to a DMD step")
def _(names: Names) -> Iterator[None]:
    generator = names["generator"] = Generator()
    names |= {"x_s": torch.randn(2, 8), "t_s": torch.ones(2), "text": None}
    names |= {"dmd_of": lambda x0, text: x0.square().mean() * 0}
    names |= {"rng": torch.Generator().manual_seed(0)}
    yield
    assert generator.calls == 2
    assert float(generator.layer.weight.grad.abs().sum()) > 0
    names |= {"kv_cache": [{"k": torch.ones(2, requires_grad=True) * 1.0}]}
    names |= {"x_m": torch.randn(2, 8), "t_m": torch.rand(2)}
    yield
    assert not names["cache"][0]["k"].requires_grad


@runs("A loop of your own")
def _(names: Names) -> Iterator[None]:
    generator = Generator()
    gradients: list[float] = []

    def prompts() -> Any:
        for seed in range(12):
            generator.zero_grad()
            yield torch.randn(2, 8, generator=torch.Generator().manual_seed(seed)), "text"
            gradients.append(float(generator.layer.weight.grad.abs().sum()))

    seen: list[Any] = []
    names |= {"generator": generator, "prompts": prompts()}
    names["dmd_of"] = lambda x0, text: seen.append(names["plan"]) or x0.square().mean()
    yield
    assert len(gradients) == len(seen) == 12
    assert all(g > 0 for g in gradients)
    assert {plan.num_steps for plan in seen} == {2, 4, 8}


@runs("An adversarial term")
def _(names: Names) -> Iterator[None]:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor, t: Tensor, text: Any) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    video = torch.randn(2, 6, 16, requires_grad=True)
    names |= {"network": Network().requires_grad_(False), "video": video, "dim": 16}
    names |= {"data": torch.randn(2, 6, 16), "noise": torch.randn(2, 6, 16)}
    names |= {"t": torch.tensor([0.5, 0.5]), "text": None, "dmd": torch.zeros(())}
    yield
    assert all(p.grad is not None for p in names["head"].parameters())
    assert float(video.grad.abs().sum()) > 0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def miniature() -> Any:
    """The trainer of `examples/tiny_video`, with what `record` asks of a real one."""
    import tiny

    trainer = tiny.build_trainer(dfake_gen_update_ratio=1)
    trainer.output_path, trainer.is_main_process, trainer.disable_wandb = "logs", True, True
    trainer.save = lambda: None
    return trainer


@runs("Add Salt to a trainer")
def _(names: Names) -> Iterator[None]:
    trainer = names["trainer"] = miniature()
    train = trainer.train
    trainer.train = lambda: train(2)
    yield
    assert names["handle"].metrics["iteration"] == 1
    assert Path("logs/salt_metrics.jsonl").read_text().count("\n") == 2
    yield


@runs("In a trainer")
def _(names: Names) -> Iterator[None]:
    names |= {"SaltConfig": SaltConfig, "record": record, "self_forcing": self_forcing}
    trainer = names["trainer"] = miniature()
    train = trainer.train
    trainer.train = lambda: train(trainer.step + 1)
    yield
    assert names["handle"].metrics["iteration"] == 0


@runs("In your own loop")
def _(names: Names) -> Iterator[None]:
    generator = Generator()
    names |= {"x_s": torch.randn(2, 8), "t_s": torch.ones(2), "text": None, "velocity": generator}
    names |= {"rng": torch.Generator().manual_seed(0), "velocity_to_x0": velocity_to_x0}
    names |= {"train_times": step_schedule(8), "inference_times": step_schedule(4)}
    names["dmd_of"] = lambda x0, text: x0.square().mean()
    yield
    assert generator.calls == 2


LOOP = ROOT / "examples" / "own_loop" / "own_loop.py"


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("README.md", "In your own loop"),
        ("docs/start.md", "Add the self-consistency term to a DMD step"),
    ],
)
def test_the_pages_quote_the_loop_that_runs(page: str, heading: str) -> None:
    loop = [line.strip() for line in LOOP.read_text().splitlines()]
    blocks = dict(code(ROOT / page))[heading]
    (block,) = (b for b in blocks if "semigroup_defect_loss(" in b)
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    quoted = lines[lines.index("v_s = velocity(x_s, t_s)") :]
    start = loop.index(quoted[0])
    assert loop[start : start + len(quoted)] == quoted
    assert quoted[-1] == "(dmd + 1.0 * sc).backward()"


def test_the_loop_has_as_many_lines_as_the_readme_says_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib").use("agg")
    text = LOOP.read_text()
    count = len(text.splitlines())
    assert f"that loop whole: {count} lines" in (ROOT / "README.md").read_text()
    assert "torch.set_num_threads(1)" in text  # busy cores made it take a quarter of an hour
    short = re.sub(r"range\(\d+\)", "range(8)", text)
    assert short.count("range(8)") == 2
    monkeypatch.chdir(tmp_path)
    names: Names = {"__name__": "own_loop"}
    exec(compile(short, "own_loop.py", "exec"), names)
    assert list(names["samples"]) == ["data", "1 step", "2 steps", "4 steps", "8 steps"]
    assert all(points.isfinite().all() for points in names["samples"].values())
    assert (tmp_path / "own_loop.png").stat().st_size > 10_000


def test_the_loop_leaves_out_the_updates_of_a_student_whose_critic_has_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib").use("agg")
    text = re.sub(r"range\(\d+\)", "range(40)", LOOP.read_text())
    start = "generator, fake_score = copy.deepcopy(teacher), copy.deepcopy(teacher)\n"
    assert start in text
    broken = start + "[p.data.fill_(torch.nan) for p in fake_score.parameters()]\n"
    monkeypatch.chdir(tmp_path)
    names: Names = {"__name__": "own_loop"}
    exec(compile(text.replace(start, broken), "own_loop.py", "exec"), names)
    pairs = zip(names["generator"].parameters(), names["teacher"].parameters())
    assert all(torch.equal(p, q) for p, q in pairs)


@runs("A discriminator in a trainer")
def _(names: Names) -> Iterator[None]:
    yield


@runs("The line")
def _(names: Names) -> Iterator[None]:
    names |= {"config": SimpleNamespace(), "SaltSelfForcingModel": "a class of FastGen's"}
    names["LazyCall"] = lambda target: lambda **settings: (target, settings)
    yield
    taken(names["config"].model_class[1]["salt"])


@runs("FastGen")
def _(names: Names) -> Iterator[None]:
    names |= {"config": SimpleNamespace(), "SaltSelfForcingModel": "a class of FastGen's"}
    names["LazyCall"] = lambda target: lambda **settings: (target, settings)
    yield
    TRAINERS["fastgen"].check(taken(names["config"].model_class[1]["salt"]), Facts())


def taken(settings: dict[str, Any]) -> SaltConfig:
    """The settings of a page, after a check that each has its place."""
    config = SaltConfig.from_mapping(settings)
    values = config.to_mapping()
    for name, value in settings.items():
        block = values[name]
        assert block.items() >= value.items() if isinstance(value, dict) else block == value
    return config


def test_fastvideos_example_is_a_config_that_it_takes() -> None:
    yaml = pytest.importorskip("yaml")
    page = (ROOT / "docs" / "api" / "integrations.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    method = yaml.safe_load(block)["method"]
    TRAINERS["fastvideo"].check(taken(method["salt"]), Facts())
    assert f"::: {method['_target_']}" in page


@runs("Model-Optimizer")
def _(names: Names) -> Iterator[None]:
    pytest.importorskip("modelopt.torch.fastgen", reason="nvidia-modelopt is not installed")

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> Tensor:
            return self.layer(hidden_states) * timestep.to(hidden_states).reshape(-1, 1, 1, 1, 1)

    names |= {"student": Network(), "teacher": Network(), "fake_score": Network()}
    names |= {"latents": torch.randn(2, 4, 3, 4, 4), "noise": torch.randn(2, 4, 3, 4, 4)}
    names |= {"text": torch.randn(2, 5, 4), "negative_text": torch.zeros(2, 5, 4)}
    if "SaltSelfForcingModel" in names:  # the API's page: the pipeline alone
        from modelopt.torch.fastgen import DMDConfig

        from salt_losses.integrations.modelopt import SaltDMDPipeline

        names["SaltDMDPipeline"] = SaltDMDPipeline
        levels = {"t_list": [0.999, *step_schedule(8, 5.0)[1:].tolist()]}
        names["config"] = DMDConfig(
            pred_type="flow", num_train_timesteps=1000, student_sample_steps=8, sample_t_cfg=levels
        )
        yield
        assert names["pipeline"]._salt.config.sc.weight == 1.0
        return
    yield
    assert set(names["losses"]) >= {"vsd", "sc", "salt", "total"}
    assert float(names["student"].layer.weight.grad.abs().sum()) > 0


@runs("diffusers")
def _(names: Names) -> Iterator[None]:
    pytest.importorskip("diffusers", reason="diffusers is not installed")

    class Pipeline:
        def __call__(self, prompt: str, num_inference_steps: int, **_: Any) -> Any:
            self.scheduler.set_timesteps(num_inference_steps)
            return SimpleNamespace(frames=[self.scheduler.sigmas])

    names |= {"pipe": Pipeline(), "prompt": "a fox"}
    yield
    torch.testing.assert_close(names["video"].double(), step_schedule(4, 5.0), atol=1e-6, rtol=0)


@runs("Recipes")
def _(names: Names) -> Iterator[None]:
    yield
    assert names["config"] == dataclasses.replace(
        SaltConfig.preset("paper"), sc=SelfConsistency(weight=0.3)
    )


@runs("The shortest adapter")
def _(names: Names) -> Iterator[None]:
    trainer = names["trainer"] = miniature()
    said: list[Any] = []
    names["print"] = said.append
    yield
    assert trainer.step == 2
    assert not names["handle"].attached
    assert said.pop()["iteration"] == 1
    yield
    assert "model.fake_score: no attribute 'fake_score' on DMD" in str(said.pop())
    names["theirs"] = SimpleNamespace(distiller=miniature().model, global_step=7)
    yield


@runs("Prove that nothing changes")
def _(names: Names) -> Iterator[None]:
    import tiny

    names["inputs"] = tiny.loss_inputs(names["trainer"].model)
    yield


@runs("From an idea to a term")
def _(names: Names) -> Iterator[None]:
    trainer = names["trainer"] = miniature()
    train, said = trainer.train, list[Any]()
    trainer.train = lambda: train(trainer.step + 2)
    names["print"] = said.append
    # `dataclass` looks for the module of its class.
    names["__name__"] = __name__
    yield
    yield
    assert said[0] > 0


@runs("When it is on, what it logs, what it keeps")
def _(names: Names) -> Iterator[None]:
    yield
    assert names["state"]["terms"]["matched"]["average"].isfinite()


@runs("What it costs")
def _(names: Names) -> Iterator[None]:
    yield
    assert names["handle"].metrics["salt/straight_loss"] > 0


def public_names() -> Iterator[str]:
    """Read, not imported: the integrations need their frameworks. These have no `__all__`."""
    package = ROOT / "src" / "salt_losses"
    modules = [package / folder / "__init__.py" for folder in (".", "terms", "adapters")]
    for pattern in ("[!_]*.py", "[!_]*/__init__.py"):
        modules += sorted((package / "integrations").glob(pattern))
    for module in modules:
        place = module.relative_to(package.parent).with_suffix("")
        parent = ".".join(place.parts).removesuffix(".__init__")
        body = ast.parse(module.read_text()).body
        names = [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        for node in body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                names = ast.literal_eval(node.value)
        yield from (f"{parent}.{name}" for name in names if not name.startswith("_"))


def test_the_api_reference_has_every_public_name_once() -> None:
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    there = [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
    assert len(set(there)) == len(there)
    # The adapters' two functions are methods of a class that is private: it stands for them.
    assert sorted(set(there) - {"salt_losses.adapters.family.attach.Adapter"}) == sorted(
        public_names()
    )


def test_every_adapter_is_in_the_api_reference() -> None:
    adapters = ROOT / "src" / "salt_losses" / "adapters"
    page = (ROOT / "docs" / "api" / "adapters.md").read_text()
    for module in adapters.glob("[!_]*.py"):
        assert f"| `salt_losses.adapters.{module.stem}` |" in page


def test_the_settings_page_has_every_setting_once_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    section = page[page.index("\n## Every setting\n") :].split("\n## ", 2)[1]
    rows = re.findall(r"^\| `([\w.]+)` \| `(.+?)` \|(.*)\|$", section, re.MULTILINE)
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(SaltConfig):
        kind = BLOCKS.get(field.name)
        if kind is None:
            defaults[field.name] = getattr(SaltConfig(), field.name)
            continue
        values = {f.name: getattr(kind(), f.name) for f in dataclasses.fields(kind)}
        if field.name == "align":
            del values["step_counts"]  # `reference` has them
        defaults |= {f"{field.name}.{name}": value for name, value in values.items()}
    assert sorted(name for name, _, _ in rows) == sorted(defaults)
    assert {name: ast.literal_eval(default) for name, default, _ in rows} == defaults
    for name, _, rest in rows:
        says = [cell.strip() for cell in rest.split(" | ") if cell.strip()]
        assert len(says) == 3, f"{name}: what it does, what chose it, what it costs"
