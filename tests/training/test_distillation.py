"""Distillation: its formula, the input of the teacher, and the teachers that are allowed."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, records_of, refused, saved_run

from flax_resnet import create_model, main
from flax_resnet.augment import training_batch
from flax_resnet.config import freeze
from flax_resnet.data.fingerprint import fingerprint_of
from flax_resnet.data.open import open_source
from flax_resnet.errors import WeightsError, WorkdirError
from flax_resnet.optim.distillation import Distill, divergence_sum
from flax_resnet.optim.losses import loss_sum
from flax_resnet.training import sharding, train
from flax_resnet.training.absolute_paths import with_absolute_paths
from flax_resnet.training.runs.folder import RunFolder
from flax_resnet.training.state import TrainState
from flax_resnet.training.step.gradient import make_gradient
from flax_resnet.training.step.train_step import AUGMENT_STREAM, loss_inputs, stream_key
from flax_resnet.training.teacher import Teacher, open_teacher

ROWS, CLASSES = 8, 10


def test_divergence_is_the_formula():
    draw = np.random.default_rng(0)
    student, teacher = draw.normal(size=(2, 5, 4)) * 3
    temperature = 2.5

    def softmax(x):
        exponents = np.exp(x / temperature)
        return exponents / exponents.sum(1, keepdims=True)

    p, q = softmax(teacher), softmax(student)
    expected = temperature**2 * (p * np.log(p / q)).sum()
    found = divergence_sum(jnp.asarray(student), jnp.asarray(teacher), temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert float(divergence_sum(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def network():
    model = create_model("resnet20", num_classes=CLASSES, depths=(1, 1, 1))
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    return model, drawn(
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    )


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_teacher_sees_the_same_mixed_images_with_its_own_normalisation(network, weight):
    model, variables = network
    config = freeze(
        {
            "augment": {"mean": (0.5,) * 3, "std": (0.2,) * 3, "mixup": 1.0, "flip": "horizontal"},
            "train": {"batch_size": ROWS},
            "distill": {"teacher": "x", "temperature": 3.0, "weight": weight},
        }
    )
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    scale, offset = 0.2 / std, (0.5 - mean) / std
    teacher_variables = jax.tree.map(lambda leaf: 1.5 * leaf, variables)
    scale, offset = (x.astype(np.float32).reshape(1, 1, 1, 3) for x in (scale, offset))
    teacher = Teacher(model, scale, offset, teacher_variables)
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.integers(0, 256, (ROWS, 8, 8, 3), np.uint8),
        "label": draw.integers(0, CLASSES, ROWS).astype(np.int32),
    }
    gradient = make_gradient(config, model, sharding.make_mesh(), teacher=teacher)
    state = TrainState(step=jnp.int32(3), opt_state=(), ema={}, **variables)

    @jax.jit
    def of_batch(state, batch, teacher_variables):
        inputs = loss_inputs(config, model, state, batch, seed=0)
        return gradient(state.params, inputs._replace(teacher_variables=teacher_variables))

    _, (metrics, _) = of_batch(state, batch, teacher_variables)

    key = stream_key(0, AUGMENT_STREAM, 3)
    images, targets = training_batch(key, batch["image"], batch["label"], CLASSES, config.augment)
    seen = ((np.asarray(images) * 0.2 + 0.5) - mean) / std
    wanted = model.apply(teacher_variables, jnp.asarray(seen, jnp.float32), train=False)
    logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    divergence = divergence_sum(logits, wanted, 3.0) / ROWS
    labels = loss_sum(logits, targets, config.loss) / ROWS
    expected = weight * divergence + (1 - weight) * labels
    assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_without_labels(tiny, tmp_path, capfd):
    """The labels have weight 0, so the student can learn only from the teacher."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    more = ["--config.train.epochs=8", "--config.train.batch_size=120"]
    assert main.main([*tiny, *more, f"--workdir={teacher}"]) == 0
    command = [*tiny, *more, f"--workdir={student}", f"--config.distill.teacher={teacher}"]
    command += ["--config.train.seed=1", "--config.augment.mean=(0.5,0.5,0.5)"]
    assert main.main([*command, "--config.distill.temperature=2.0"]) == 0
    assert f"1 x divergence from {teacher} (temperature 2)" in capfd.readouterr().err
    scores = [records_of(run, "test")[-1]["top1"] for run in (teacher, student)]
    assert scores[1] > 0.5 * scores[0] > 0.25


@pytest.mark.parametrize(
    ("names", "flags", "parts"),
    [
        (
            "0123456789",
            ["--config.model.num_classes=12"],
            ["distill.teacher='TEACHER'", "10 classes", "12 classes"],
        ),
        (
            "012345678",
            [],
            ["distill.teacher='TEACHER'", "9 classes", "10 classes"],
        ),
        (
            "0123456789",
            ["--config.model.in_channels=1"],
            ["distill.teacher='TEACHER'", "3 channels", "model.in_channels=1"],
        ),
        (
            "0123456789",
            ["--config.distill.teacher=weights.pth"],
            ["distill.teacher_model=''", "weights.pth'"],
        ),
        (
            "0123456789",
            ["--config.distill.teacher=runs/none"],
            [f"distill.teacher={str(pathlib.Path('runs/none').resolve())!r}"],
        ),
    ],
)
def test_a_teacher_with_other_classes_or_channels_is_refused(
    tiny, tmp_path, capsys, names, flags, parts
):
    teacher = saved_run(tmp_path / "teacher", {"model": {"name": "resnet20"}}, list(names))
    command = [*tiny, f"--workdir={tmp_path / 'run'}", f"--config.distill.teacher={teacher}"]
    if "--config.model.in_channels=1" in flags:
        command += ["--config.augment.mean=(0.5,)", "--config.augment.std=(0.5,)"]
    assert main.main(command + flags) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    first, *others = (part.replace("TEACHER", str(teacher)) for part in parts)
    assert error[0].startswith(f"error: {first}")
    for part in others:
        assert part in error[0]
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_only_with_its_first_teacher(tmp_path, data_dir, monkeypatch):
    """The teacher may be a relative path, or have moved. If it was trained further, only a forced resume works."""

    class GoesOn(Exception):
        pass

    def goes_on(*args, **more):
        raise GoesOn

    digits = [str(number) for number in range(CLASSES)]
    network = {"model": {"name": "resnet20", "depths": (1, 1, 1)}}
    saved_run(tmp_path / "teacher", network, digits)
    monkeypatch.chdir(tmp_path)
    config = freeze({**network, "data": {"data_dir": data_dir}, "distill": {"teacher": "teacher"}})
    stored = with_absolute_paths(config)
    assert stored.distill.teacher == str(tmp_path / "teacher")
    teacher_checksum = open_teacher(config, CLASSES, digits).checksum
    student = tmp_path / "student"
    data = fingerprint_of(open_source(config.data, train=True))
    about = {"num_examples": 1437, "fingerprint": data, "teacher_checksum": teacher_checksum}
    saved_run(student, dataclasses.asdict(stored), digits, **about)

    monkeypatch.setattr(RunFolder, "store_config", goes_on)  # all checks come before this call
    with pytest.raises(GoesOn):
        train.train(config, student)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(GoesOn):
        train.train(stored, student)
    with refused("distill.teacher", "teacher", WeightsError):
        train.train(config, student)
    (tmp_path / "teacher").rename(tmp_path / "moved")
    moved = dataclasses.replace(config, distill=Distill(teacher="../moved"))
    with pytest.raises(GoesOn):
        train.train(moved, student)
    (tmp_path / "moved").rename(tmp_path / "teacher")
    saved_run(tmp_path / "teacher", network, digits, step=5)
    with refused("distill.teacher", stored.distill.teacher, WorkdirError) as error:
        train.train(stored, student)
    assert str(student) in error.value.problem
    with pytest.raises(GoesOn):
        train.train(stored, student, resume="force")
