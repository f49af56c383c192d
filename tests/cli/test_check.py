"""`salt-losses check`: seams are found in source alone, and each that is gone is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from salt_losses.cli import main
from salt_losses.cli.check import examine

# A trainer of the family's shape that cannot be imported: what is read must not be run.
FILES = {
    "train.py": "import gone\nfrom trainer import ScoreDistillationTrainer\ndef main(): pass\n",
    "inference.py": "",
    "trainer/__init__.py": "from .distillation import Trainer as ScoreDistillationTrainer\n",
    "trainer/distillation.py": """\
from model import DMD, SiD
class Trainer:
    def __init__(self, config):
        self.step = 0
        self.config, self.output_path = config, config.logdir
        self.is_main_process = self.disable_wandb = True
        self.model = SiD(config) if config.sid else DMD(config)
    def save(self): pass
""",
    "model/__init__.py": "from .dmd import DMD\nfrom .sid import SiD\n",
    "model/sid.py": "class SiD: pass\n",
    "model/base.py": """\
from pipeline import SelfForcingTrainingPipeline
from utils.wrapper import Wrapper
class Base:
    def __init__(self, args):
        self.generator = Wrapper(causal=True)
        self.real_score = Wrapper()
        self.fake_score = Wrapper()
        self.scheduler = self.generator.get_scheduler()
        self.args, self.device, self.dtype = args, args.device, args.dtype
        self.text_encoder = args.text_encoder
        self.denoising_step_list = args.steps
    def _consistency_backward_simulation(self, noise, **conditional_dict): pass
    def _initialize_inference_pipeline(self):
        self.inference_pipeline = SelfForcingTrainingPipeline(generator=self.generator)
""",
    "model/dmd.py": """\
from model.base import Base
class DMD(Base):
    def __init__(self, args):
        self.inference_pipeline: object = None
        self.min_step, self.max_step = 20, 980
        self.timestep_shift = 5.0
    def compute_distribution_matching_loss(
        self, image_or_video, conditional_dict, gradient_mask=None
    ): pass
    def generator_loss(
        self, image_or_video_shape, conditional_dict, unconditional_dict, clean_latent
    ): pass
    def critic_loss(self, image_or_video_shape, conditional_dict, unconditional_dict): pass
""",
    "utils/wrapper.py": """\
class Scheduler:
    def __init__(self, shift):
        self.shift = shift
    def set_timesteps(self):
        self.timesteps = []
class Network:
    def __init__(self):
        self.blocks, self.dim = [], 8
class Wrapper:
    def __init__(self, causal=False):
        self.model = Network.from_pretrained("weights")
        self.scheduler = Scheduler(shift=5.0)
    def get_scheduler(self): return self.scheduler
    def forward(
        self, noisy_image_or_video, conditional_dict, timestep,
        kv_cache=None, crossattn_cache=None, current_start=None
    ): pass
""",
    "pipeline/__init__.py": """\
from .training import SelfForcingTrainingPipeline
from .inference import CausalInferencePipeline
""",
    "pipeline/inference.py": """\
class CausalInferencePipeline:
    def __init__(self):
        self.denoising_step_list = self.scheduler = None
    def inference(self, noise): pass
""",
    "pipeline/training.py": """\
class SelfForcingTrainingPipeline:
    def __init__(self, generator):
        self.generator = generator
        self.denoising_step_list = []
        self.frame_seq_length = 1560
        self.kv_cache1 = None
        self.same_step_across_blocks = True
    def generate_and_sync_list(self, num_blocks, num_denoising_steps, device): pass
    def inference_with_trajectory(self, noise, **conditional_dict):
        self.generator(
            noisy_image_or_video=noise, conditional_dict=conditional_dict, timestep=0,
            kv_cache=self.kv_cache1, crossattn_cache=None, current_start=0
        )
""",
}


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def abilities(root: Path) -> dict[str, list[str]]:
    (model,) = examine(root)["models"]
    return {ability["name"]: ability["missing"] for ability in model["abilities"]}


def test_a_trainer_that_has_all_seams_can_be_attached_to(
    fork: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(fork)]) == 0
    out = capsys.readouterr().out
    assert "Self Forcing" in out
    assert "DMD (model/dmd.py:2)" in out
    assert "salt_losses.adapters.self_forcing" in out
    assert set(map(len, abilities(fork).values())) == {0}


@pytest.mark.parametrize(
    ("file", "old", "new", "ability", "message"),
    [
        ("pipeline/training.py", "kv_cache1 = ", "cache1 = ", "attach", "pipeline.kv_cache1: no"),
        ("trainer/distillation.py", "self.step", "self.at", "attach", "trainer.step: no attribute"),
        ("utils/wrapper.py", "self.timesteps", "self.t", "attach", "model.scheduler.timesteps: no"),
        (
            "model/dmd.py",
            "unconditional_dict, clean_latent",
            "negative, clean_latent",
            "attach",
            "model.generator_loss: takes no keyword 'unconditional_dict'",
        ),
        (
            "model/base.py",
            "(self, noise, **conditional_dict)",
            "(self, z, conditional_dict)",
            "attach",
            "_consistency_backward_simulation: takes no keyword 'noise'",
        ),
        ("utils/wrapper.py", "current_start=None", "start=None", "attach", "generator.forward: "),
        (
            "pipeline/training.py",
            "timestep=0",
            "level=0",
            "attach",
            "pipeline/training.py:10: self.generator(...) without keyword 'timestep'",
        ),
        (
            "utils/wrapper.py",
            "self.blocks, self.dim",
            "self.layers, self.dim",
            "alignment, by fake_score",
            "model.fake_score.model.blocks: no attribute 'blocks' on Network",
        ),
        ("utils/wrapper.py", "self.dim", "self.width", "discriminator", "fake_score.model.dim"),
        ("model/dmd.py", ", clean_latent", "", "discriminator", "takes no keyword 'clean_latent'"),
        ("trainer/distillation.py", "def save", "def write", "record", "trainer.save: no"),
        (
            "model/base.py",
            "self.text_encoder",
            "self.text",
            "step sweeps",
            "model.text_encoder: no",
        ),
        ("pipeline/inference.py", "def inference", "def run", "step sweeps", "inference: not"),
        ("train.py", "def main", "def run", "train", "no function main"),
        ("pipeline/inference.py", "def inference", "def run", "sample", "inference: not"),
    ],
)
def test_each_seam_that_is_gone_is_named_under_what_needs_it(
    fork: Path, file: str, old: str, new: str, ability: str, message: str
) -> None:
    path = fork / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert any(message in line for line in abilities(fork)[ability])
    assert main(["check", str(fork)]) == (1 if ability == "attach" else 0)


def test_a_trainer_below_the_folder_and_other_frameworks_are_pointed_to(
    tmp_path: Path, fork: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fork / "trainer").rename(fork / "moved")
    inner = fork / "inner" / "trainer"
    inner.parent.mkdir()
    (fork / "moved").rename(inner)
    (fork / "train.py").unlink()
    assert main(["check", str(fork)]) == 1
    assert "inner/ has a trainer: check that folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "title", "module"),
    [
        ("fastvideo/train", "FastVideo", "fastvideo"),
        ("fastgen/methods", "FastGen", "fastgen"),
        ("lightx2v_train/lightx2v_train/trainers/dmd", "LightX2V", "lightx2v"),
        ("modelopt/torch/fastgen", "Model-Optimizer", "modelopt"),
    ],
)
def test_a_framework_that_salt_extends_is_known(
    folder: str, title: str, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path)]) == 1
    (tmp_path / folder).mkdir(parents=True)
    assert main(["check", str(tmp_path)]) == 0
    assert f"salt_losses.integrations.{module}" in capsys.readouterr().out.split(title, 1)[1]
    assert main(["check", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["trainer"], found["attachable"]) == (title, True)
    assert found["adapter"] == f"salt_losses.integrations.{module}"


def test_a_checkout_is_looked_at_without_torch(fork: Path) -> None:
    code = (
        "import sys; sys.argv = ['salt-losses', 'check', sys.argv[1]]; sys.modules['torch'] = None;"
        "from salt_losses.cli import main; sys.exit(main())"
    )
    found = subprocess.run([sys.executable, "-c", code, str(fork)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "Self Forcing" in found.stdout


def test_a_pipeline_of_some_configurations_is_looked_at_too(fork: Path) -> None:
    """Self-Forcing-Plus's, where the student sees all frames at once."""
    path = fork / "model/base.py"
    text = path.read_text().replace(
        "        self.inference_pipeline = SelfForcing",
        "        if not self.causal:\n            self.inference_pipeline = Bidirectional()\n"
        "        self.inference_pipeline = SelfForcing",
    )
    path.write_text(f"class Bidirectional:\n    pass\n{text}")
    found = abilities(fork)
    assert found["attach"] == []
    missing = found["attach, with Bidirectional"]
    attributes = ("generator", "denoising_step_list", "kv_cache1")
    for attribute in attributes:
        expected = f"no attribute {attribute!r} on Bidirectional (model/base.py:1)"
        assert f"pipeline.{attribute}: {expected}" in missing


def test_streaming_and_a_first_chunks_list_choose_the_adapter(fork: Path) -> None:
    path = fork / "pipeline/training.py"
    path.write_text(path.read_text() + "        self.denoising_step_list_first_chunk = None\n")
    assert examine(fork)["trainer"] == "Causal Forcing"
    trainer = fork / "trainer/distillation.py"
    text = trainer.read_text()
    trainer.write_text(text.replace("self.step = 0", "self.step, self.streaming_model = 0, None"))
    found = examine(fork)
    assert found["adapter"] == "salt_losses.adapters.longlive"


SOLVER = """
    def roll(self):
        from solvers import FlowUniPCMultistepScheduler
        solver = FlowUniPCMultistepScheduler(shift=1)
        solver.set_timesteps(self.sampling_steps)
        return solver.timesteps
"""


def test_rollouts_by_longlives_solver_are_its_second_version(fork: Path) -> None:
    path = fork / "pipeline/training.py"
    text = path.read_text().replace("self.kv_cache1", "self.sampling_steps = self.kv_cache1", 1)
    path.write_text(text + SOLVER)
    found = examine(fork)
    assert found["trainer"] == "LongLive 2.0"
    assert found["adapter"] == "salt_losses.adapters.longlive2"
    assert "record refuses sweep_every" in abilities(fork)["step sweeps"][-1]
    path.write_text(text.replace("sampling_steps", "steps") + SOLVER)
    assert examine(fork)["trainer"] is None
    assert "no attribute 'sampling_steps'" in abilities(fork)["attach"][0]


@pytest.mark.parametrize("sign", ["self.sampling_steps = 4", "def roll(self): s.set_timesteps(4)"])
def test_a_rollout_that_makes_its_own_timesteps_is_not_known(
    fork: Path, capsys: pytest.CaptureFixture[str], sign: str
) -> None:
    path = fork / "pipeline/training.py"
    if sign.startswith("def"):
        path.write_text(f"{path.read_text()}    {sign}\n")
    else:
        path.write_text(
            path.read_text().replace("self.kv_cache1 =", f"{sign}; self.kv_cache1 =", 1)
        )
    assert main(["check", str(fork)]) == 1
    out = capsys.readouterr().out
    assert "not known, of unknown commit. Its places are near those of Self Forcing" in out
    assert "the rollout makes its own timesteps" in out
    assert examine(fork)["trainer"] is None
    assert examine(fork)["nearest"] == "Self Forcing"


def test_a_trainer_of_another_name_is_found_by_what_it_makes(fork: Path) -> None:
    (fork / "train.py").write_text("from trainer import MyTrainer\ndef main(): pass\n")
    (fork / "trainer/__init__.py").write_text("from .distillation import MyTrainer\n")
    path = fork / "trainer/distillation.py"
    path.write_text(path.read_text().replace("class Trainer", "class MyTrainer"))
    assert examine(fork)["trainer"] == "Self Forcing"
    assert abilities(fork)["attach"] == []
    assert abilities(fork)["train"] != []
    path = fork / "pipeline/training.py"
    path.write_text(path.read_text().replace("kv_cache1", "kv_cache"))  # minWM's
    assert abilities(fork)["attach"] == []


def test_the_commit_is_read_from_gits_own_files(
    fork: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert examine(fork)["commit"] is None
    git = ["git", "-C", str(fork), "-c", "user.name=a", "-c", "user.email=a@b"]
    try:
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
            subprocess.run([*git, *command], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert examine(fork)["commit"] == head.stdout.strip()
    subprocess.run([*git, "pack-refs", "--all"], check=True)
    assert examine(fork)["commit"] == head.stdout.strip()
    assert main(["check", str(fork), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["commit"] == head.stdout.strip()
    assert found["attachable"] is True


def test_a_file_that_is_no_python_is_named_and_no_traceback(
    fork: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fork / "model/dmd.py").write_text("class DMD(:\n")
    assert main(["check", str(fork)]) == 1
    assert "could not be read: model/dmd.py" in capsys.readouterr().out
    assert main(["check", str(fork / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err
