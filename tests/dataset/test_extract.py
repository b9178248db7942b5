"""python -m dataset.extract: clips made of a tone and of a public-domain photograph, which scikit-image brings."""

import os
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from dataset import extract
from dataset.extract import AUDIO, DISTANCES, VISION, face_features
from tests.commands import ROOT, launch, refused
from utils.reading import read_json

SECONDS, RATE, PITCH = 2, 24000, 180.0  # length of a clip; samples a second; Hz
SHIFTS, TURNS = [0, 40, 80, 40, 0], [-15, 0, 15]  # pixels to the right and degrees clockwise, over a clip


def tone() -> np.ndarray:
    """(S,) int16: a voice-like tone of some harmonics."""
    time = np.arange(SECONDS * RATE) / RATE
    return (3000 * sum(np.sin(2 * np.pi * PITCH * n * time) / n for n in range(1, 6))).astype(np.int16)


def over_the_clip(values: list[float], number: int) -> np.ndarray:
    """(number,): the values reached one after the other at an even speed."""
    return np.interp(np.linspace(0, 1, number), np.linspace(0, 1, len(values)), values)


def write_video(path: Path, images: np.ndarray, samples: np.ndarray | None) -> None:
    """Images (T, 512, 512, 3) at 15 a second, and samples (S,)."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=15, width=512, height=512, bit_rate=4_000_000)
        sound = None if samples is None else container.add_stream("aac", rate=RATE, layout="mono")
        for image in [*map(av.VideoFrame.from_ndarray, images), None]:
            container.mux(video.encode(image))
        if sound:
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = RATE
            container.mux([*sound.encode(frame), *sound.encode()])


def write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE), file.writeframes(samples.tobytes())


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder of clips of each kind."""
    for library in ("av", "librosa", "mediapipe"):
        pytest.importorskip(library)
    photograph = pytest.importorskip("skimage.data").astronaut()  # (512, 512, 3), with a face
    folder, frames = tmp_path_factory.mktemp("clips"), 15 * SECONDS
    moved = [np.roll(photograph, int(shift), axis=1) for shift in over_the_clip(SHIFTS, frames)]
    turned = [ndimage.rotate(photograph, -turn, reshape=False, order=1) for turn in over_the_clip(TURNS, frames)]
    grey = np.full((frames, 512, 512, 3), 128, np.uint8)
    write_video(folder / "moved.mp4", np.array(moved), tone())
    write_video(folder / "turned.mkv", np.array(turned), np.zeros_like(tone()))
    write_wav(folder / "turned.wav", tone())
    write_video(folder / "silent.mp4", np.array([photograph] * 5 + [grey[0]] * 10), None)
    write_video(folder / "faceless.avi", grey, tone())
    write_video(folder / "nothing.mov", grey, np.zeros_like(tone()))
    write_video(folder / "late.mp4", np.array([grey[0]] * 20 + [photograph] * 10), tone())
    (folder / "broken.mp4").write_bytes((folder / "moved.mp4").read_bytes()[:20000])
    (folder / "empty.webm").touch()
    write_wav(folder / "void.wav", np.zeros(0, np.int16))
    return folder


@pytest.fixture(scope="module")
def extracted(clips, tmp_path_factory):
    """-> how the command ended; its folder"""
    output = tmp_path_factory.mktemp("work") / "features"
    return launch("-m", "dataset.extract", str(clips), "-o", str(output), "-j", "2", cwd=ROOT), output


def read(output: Path, key: str, name: str) -> dict[str, np.ndarray]:
    """The columns (T,) of a feature file."""
    columns = {"audio": AUDIO, "vision": VISION}[key]
    return dict(zip(columns, np.load(output / key / f"{name}.npy").T, strict=True))


def test_the_others_are_extracted_where_some_fail(extracted):
    result, output = extracted
    assert result.returncode == 2, result
    assert "9 clips: 3 complete, 1 without sound, 1 without a face, 4 failed.\n" in result.stdout
    named = {line.split(": ")[0] for line in result.stdout.splitlines()[:-1]}
    assert named == {"broken", "empty", "void", "nothing", "silent", "faceless", "late"}
    names = ["faceless.npy", "late.npy", "moved.npy", "silent.npy", "turned.npy"]
    assert sorted(os.listdir(output / "audio")) == sorted(os.listdir(output / "vision")) == names
    description = read_json(output / "features.json")
    assert description["rates (Hz)"] == {"audio": 20, "vision": 5}
    assert {key: len(names) for key, names in description["columns"].items()} == {"audio": 25, "vision": 23}


@pytest.mark.parametrize("name", ["moved", "turned", "faceless"])
def test_pitch_of_a_tone(extracted, name):
    audio = read(extracted[1], "audio", name)
    assert len(audio["f0"]) == pytest.approx(SECONDS * 20, abs=3)
    np.testing.assert_allclose(audio["f0"][2:-3], PITCH, rtol=0.02)
    assert (audio["voicing"][2:-3] > 0.5).all()
    np.testing.assert_allclose(audio["rms"][2:-3], np.sqrt(np.mean((tone() / 2**15) ** 2)), rtol=0.05)


def test_a_face_that_moves_and_turns(extracted):
    moved, turned = (read(extracted[1], "vision", name) for name in ("moved", "turned"))
    assert moved["face"].all() and len(moved["x"]) == SECONDS * 5
    shifts, turns = (over_the_clip(values, 15 * SECONDS)[::3] for values in (SHIFTS, TURNS))  # 5 of 15 are looked at
    np.testing.assert_allclose((moved["x"] - moved["x"][0]) * 512, shifts, atol=4)
    np.testing.assert_allclose(turned["roll"] - turned["roll"].mean(), turns - turns.mean(), atol=3)
    np.testing.assert_allclose(turned["size"], moved["size"].mean(), rtol=0.1)


def test_what_is_missing_is_zeros(extracted):
    output = extracted[1]
    silent, faceless = np.load(output / "audio/silent.npy"), np.load(output / "vision/faceless.npy")
    assert silent.shape == (20, 25) and faceless.shape == (SECONDS * 5, 23)
    assert not silent.any() and not faceless.any()
    late = np.load(output / "vision/late.npy")
    assert not late[:6].any() and late[7:].any(axis=1).all()


def test_a_second_run_skips_what_is_done_and_gives_the_same_bytes(clips, extracted):
    output = extracted[1]
    files = sorted(output.rglob("*.npy"))
    contents = [file.read_bytes() for file in files]
    times = {file: file.stat().st_mtime_ns for file in files}
    (output / "vision/moved.npy").unlink()
    arguments = ["-m", "dataset.extract", str(clips), "-o", str(output)]
    assert "another folder" in launch(*arguments, "--vision-rate", "10", cwd=ROOT).stderr
    result = launch(*arguments, cwd=ROOT)
    assert "4 done before, 1 complete, 4 failed" in result.stdout and result.returncode == 2
    assert [file.read_bytes() for file in files] == contents
    assert {file.stem for file in files if file.stat().st_mtime_ns != times[file]} == {"moved"}


def test_no_clips_two_of_one_name_and_no_libraries(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [".", "-o", "out"]
    assert "no clips" in refused(capsys, extract, *arguments)
    Path("a.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install -r requirements-extract.txt" in refused(capsys, extract, *arguments)
    assert "rates" in refused(capsys, extract, *arguments, "--audio-rate", "0")
    Path("a.MOV").touch()
    assert "more than one video of a" in refused(capsys, extract, *arguments)


def test_pose_and_distances_of_known_points():
    """A head turned by known angles has them, and keeps its distances, wherever it is in the image."""
    points = np.random.default_rng(0).normal(size=(478, 3))
    points[[33, 263]], points[[10, 2]] = [[-1, 0, 0], [1, 0, 0]], [[0, -1, 0], [0, 1.5, 0]]
    straight = None
    for yaw, pitch, roll in ([0, 0, 0], [30, 0, 0], [0, -20, 0], [0, 0, 15], [25, 10, -40]):
        turned = Rotation.from_euler("YXZ", [-yaw, -pitch, roll], degrees=True).apply(points)  # x right, y down
        pixels = turned * 50 + [300, 200, 0]
        found = dict(zip(VISION, face_features(pixels, 640, 480), strict=True))
        np.testing.assert_allclose([found[key] for key in ("yaw", "pitch", "roll")], [yaw, pitch, roll], atol=1e-6)
        np.testing.assert_allclose([found["x"], found["y"], found["size"]], [300 / 640, 200 / 480, 100 / 640])
        shape = [found[key] for key in (*DISTANCES, "mouth_corner_left", "gaze_x")]
        straight = straight or shape
        np.testing.assert_allclose(shape, straight)
    nose = Rotation.from_euler("YXZ", [-30, -30, 0], degrees=True).apply([0, 0, -1])  # towards the camera is -z
    assert nose[0] > 0 and nose[1] < 0
