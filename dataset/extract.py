"""Extract audio and vision features of video clips, for dataset.build.

python -m dataset.extract clips/ -o features/

They are not the published COVAREP and FACET features. Use a model only with features that were
extracted in the same way as its training data.
Legend: S samples, T steps, d columns. Step i is at i / rate seconds of the clip.
"""

import argparse
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from dataset.features import shorten
from utils.cli import ArgumentParser, run_command
from utils.errors import ConfigError, DataError
from utils.files import write_atomically, write_json
from utils.reading import printable, read_json

VIDEO = (".mp4", ".mov", ".mkv", ".webm", ".avi")
SOUND = ".wav"
MODALITIES = ("audio", "vision")  # folders of the output

SAMPLE_RATE = 16000  # Hz
WINDOW = 1024  # samples around each step that audio features are computed from
TRACK = 160  # samples between the steps at which f0 is tracked
LOWEST, HIGHEST = 65, 400  # Hz of f0
PRIOR = (2, 8)  # pYIN's distribution of thresholds, for noisy sound such as a webcam's
SILENCE = 1e-4  # relative to full scale; a quieter sound track counts as silent
LONGEST_JITTER = SAMPLE_RATE / 20  # samples; longer gaps in the sound track are filled with zeros

# Columns and their units, as written to features.json.
AUDIO = {f"mfcc_{i}": "librosa's scale" for i in range(20)}
AUDIO["f0"] = "Hz; 0 in unvoiced steps"
AUDIO["voicing"] = "probability"
AUDIO["rms"] = "fraction of full scale"
AUDIO["zero_crossings"] = "fraction of the samples"
AUDIO["spectral_centroid"] = "Hz"

CONFIDENCE = 0.7  # to accept a face; at MediaPipe's default of 0.5, drawings on a wall pass
# Landmarks of MediaPipe's face mesh; right and left are the speaker's.
EYE_CORNERS = [33, 133, 362, 263]
OUTER_EYE_CORNERS = [33, 263]
IRISES = [468, 473]
INNER_LIPS = [13, 14]
MOUTH_CORNERS = [61, 291]
FOREHEAD = 10
NOSE_BASE = 2
DISTANCES = {
    "mouth_width": MOUTH_CORNERS,
    "mouth_open": INNER_LIPS,
    "lips_height": (0, 17),
    "nose_to_lip": (NOSE_BASE, 0),
    "nose_to_chin": (NOSE_BASE, 152),
    "brows_gap": (107, 336),
    "brow_inner_right": (107, 133),
    "brow_inner_left": (336, 362),
    "brow_outer_right": (105, 33),
    "brow_outer_left": (334, 263),
    "eye_open_right": (159, 145),
    "eye_open_left": (386, 374),
}
VISION = {
    "yaw": "degrees to the image's right",
    "pitch": "degrees up; only differences are meaningful",
    "roll": "degrees clockwise in the image",
    "size": "distance between the outer corners of the eyes, in widths of the image",
    "x": "fraction of the image's width, from the left",
    "y": "fraction of the image's height, from the top",
}
VISION.update(dict.fromkeys(DISTANCES, "in sizes, in three dimensions"))
VISION["mouth_corner_right"] = "in sizes, above the middle of the lips"
VISION["mouth_corner_left"] = "in sizes, above the middle of the lips"
VISION["gaze_x"] = "in sizes, of the irises to the image's right, relative to the head"
VISION["gaze_y"] = "in sizes, of the irises down, relative to the head"

DONE_BEFORE = "done before"
COMPLETE = "complete"
WITHOUT_SOUND = "without sound"
WITHOUT_FACE = "without a face"
FAILED = "failed"


@dataclass(frozen=True)
class Clip:
    """The files of one utterance."""

    name: str  # id of the utterance
    video: Path | None
    sound: Path  # the wav file, or the video if there is none


@dataclass(frozen=True)
class Outcome:
    """How the extraction of one clip ended."""

    kind: str  # DONE_BEFORE, COMPLETE, WITHOUT_SOUND, WITHOUT_FACE or FAILED
    remark: str = ""


def find_clips(folder: Path) -> list[Clip]:
    """Find the clips of a folder: `<id>.mp4` and so on, `<id>.wav`, or both.

    Args:
        folder: The folder; other files in it are ignored.

    Returns:
        The clips by name.

    Raises:
        DataError: The folder has no clips, or two videos of the same name.
    """
    expected = f"expected {', '.join(f'<id>{suffix}' for suffix in (*VIDEO, SOUND))}"
    videos, sounds, twice = {}, {}, []
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.name.startswith("."):
            continue
        if file.suffix.lower() == SOUND:
            sounds[file.stem] = file
        elif file.suffix.lower() in VIDEO:
            if file.stem in videos:
                twice.append(file.stem)
            videos[file.stem] = file
    if twice:
        raise DataError(
            f"{folder}: more than one video of {shorten(twice)}; {expected}, one per utterance."
        )
    if not videos and not sounds:
        raise DataError(f"{folder}: no clips; {expected}, one per utterance.")
    clips = []
    for name in sorted(videos.keys() | sounds.keys()):
        video = videos.get(name)
        clips.append(Clip(name, video, sounds.get(name, video)))
    return clips


def read_sound(file: Path) -> np.ndarray:
    """Read the first sound track of a file.

    Args:
        file: A video or a wav file.

    Returns:
        (S,) mono at SAMPLE_RATE, in [-1, 1]; zeros before the track begins and in its gaps. S is 0
        without a sound track.
    """
    import av

    # As integers: with floats, the resampler makes stereo louder than mono.
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    samples = [np.zeros(0)]
    length = 0
    with av.open(str(file)) as container:
        start = (container.start_time or 0) / av.time_base
        for frame in _frames_and_end(container.decode(audio=0) if container.streams.audio else ()):
            for part in resampler.resample(frame):
                gap = round(((part.time or 0) - start) * SAMPLE_RATE) - length
                silence = np.zeros(gap if gap > LONGEST_JITTER else 0)
                sound = part.to_ndarray()[0] / 2**15
                samples += [silence, sound]
                length += len(silence) + len(sound)
    return np.concatenate(samples, dtype=np.float32)


def _frames_and_end(frames: Iterator) -> Iterator:
    """The frames, and None after the last."""
    yield from frames
    yield None


def read_images(file: Path, rate: float) -> Iterator[np.ndarray]:
    """Read the image that a player shows at each step, up to the time of the last frame.

    Args:
        file: A video.
        rate: Steps per second.

    Yields:
        Images (H, W, 3), uint8 RGB, upright.
    """
    import av

    with av.open(str(file)) as container:
        start = (container.start_time or 0) / av.time_base
        step = 0
        shown = None
        for frame in _frames_and_end(container.decode(video=0) if container.streams.video else ()):
            if shown is not None:
                # Until the next frame; the last one is shown at its own time only.
                end = shown.time + 1e-6 if frame is None else frame.time - 1e-6
                while step / rate < end - start:
                    image = shown.to_ndarray(format="rgb24")
                    yield np.ascontiguousarray(np.rot90(image, shown.rotation // 90))
                    step += 1
            shown = frame


def audio_features(samples: np.ndarray, rate: float) -> np.ndarray:
    """Compute the audio features, whose columns are AUDIO.

    Args:
        samples: (S,) at SAMPLE_RATE.
        rate: Steps per second.

    Returns:
        (T, 25)
    """
    from librosa import feature, pyin

    hop = int(SAMPLE_RATE / rate)
    parts = math.ceil(hop / TRACK)  # steps of f0 within a step of the features
    while hop % parts:
        parts += 1
    f0, _, voicing = pyin(
        samples,
        fmin=LOWEST,
        fmax=HIGHEST,
        fill_na=0,
        sr=SAMPLE_RATE,
        frame_length=WINDOW,
        hop_length=hop // parts,
        beta_parameters=PRIOR,
    )
    frames = {"frame_length": WINDOW, "hop_length": hop}
    spectrum = {"y": samples, "sr": SAMPLE_RATE, "n_fft": WINDOW, "hop_length": hop}
    columns = [
        feature.mfcc(n_mfcc=20, **spectrum),
        f0[None, ::parts],
        voicing[None, ::parts],
        feature.rms(y=samples, **frames),
        feature.zero_crossing_rate(samples, **frames),
        feature.spectral_centroid(**spectrum),
    ]
    return np.concatenate(columns).T.astype(np.float32)


def vision_features(images: Iterator[np.ndarray]) -> np.ndarray:
    """Compute the vision features, whose columns are VISION.

    Args:
        images: Images (H, W, 3), one for each step.

    Returns:
        (T, 22); a step without a face is zeros.
    """
    from mediapipe.python.solutions import face_detection, face_mesh

    rows = []
    mesh_options = {
        "static_image_mode": True,
        "refine_landmarks": True,
        "min_detection_confidence": CONFIDENCE,
    }
    with (
        face_detection.FaceDetection(model_selection=1) as finder,
        face_mesh.FaceMesh(**mesh_options) as mesh,
    ):
        for image in images:
            points = find_face(image, finder, mesh)
            if points is None:
                rows.append(np.zeros(len(VISION)))
            else:
                height, width, _ = image.shape
                rows.append(face_features(points, width, height))
    return np.array(rows, np.float32).reshape(-1, len(VISION))


def find_face(image: np.ndarray, finder, mesh) -> np.ndarray | None:
    """Find the largest face in an image.

    The mesh misses faces that are small in the image, so it gets the region around a face that the
    finder detected. The finder misses large faces; the mesh then gets the whole image.

    Args:
        image: (H, W, 3)
        finder: MediaPipe's FaceDetection.
        mesh: MediaPipe's FaceMesh.

    Returns:
        Landmarks (478, 3) in pixels to the right, down and away from the camera; None without a
        face.
    """
    height, width, _ = image.shape
    left, top, right, bottom = 0, 0, width, height
    boxes = []
    for found in finder.process(image).detections or ():
        boxes.append(found.location_data.relative_bounding_box)
    if boxes:
        widths = [box.width for box in boxes]
        box = boxes[np.argmax(widths)]
        size = np.array([width, height])
        middle = np.array([box.xmin + box.width / 2, box.ymin + box.height / 2]) * size
        reach = box.width * width
        corners = np.clip([middle - reach, middle + reach], 0, size).astype(int)
        (left, top), (right, bottom) = corners
    surroundings = np.ascontiguousarray(image[top:bottom, left:right])
    if surroundings.size == 0:
        return None
    faces = mesh.process(surroundings).multi_face_landmarks
    if not faces:
        return None
    points = np.array([(point.x, point.y, point.z) for point in faces[0].landmark])
    scale = [right - left, bottom - top, right - left]  # MediaPipe's depth is in widths
    return points * scale + [left, top, 0]


def face_features(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Compute the vision features of one face.

    Args:
        points: Landmarks (478, 3) in pixels, as find_face returns them.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        (22,)
    """
    right_eye, left_eye = points[OUTER_EYE_CORNERS]
    across = left_eye - right_eye
    down = points[NOSE_BASE] - points[FOREHEAD]
    size = np.linalg.norm(across)
    middle = points[OUTER_EYE_CORNERS].mean(axis=0)
    axes = [across / size, down / np.linalg.norm(down)]
    head, _ = Rotation.align_vectors(axes, [[1, 0, 0], [0, 1, 0]])
    yaw, pitch, roll = head.as_euler("YXZ", degrees=True)
    pose = [-yaw, -pitch, roll, size / width, middle[0] / width, middle[1] / height]

    face = head.apply(points - middle, inverse=True) / size  # in the axes of the head
    pairs = face[list(DISTANCES.values())]  # (12, 2, 3)
    distances = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1)
    corners_up = face[INNER_LIPS, 1].mean() - face[MOUTH_CORNERS, 1]
    eyes = face[EYE_CORNERS].reshape(2, 2, 3).mean(axis=1)
    gaze = (face[IRISES] - eyes).mean(axis=0)[:2]
    return np.concatenate([pose, distances, corners_up, gaze])


@dataclass(frozen=True)
class Extractor:
    """Writes the two feature files of a clip; called in the processes of the pool.

    Args:
        output: Folder of the feature files.
        audio_rate: Steps per second.
        vision_rate: Steps per second.
    """

    output: Path
    audio_rate: float
    vision_rate: float

    def __call__(self, clip: Clip) -> Outcome:
        """Extract one clip; an error is returned as the outcome, not raised."""
        try:
            samples = read_sound(clip.sound)
            images = read_images(clip.video, self.vision_rate) if clip.video else iter(())
            vision = vision_features(images)
            silent = np.abs(samples).max(initial=0) < SILENCE
            audio = np.zeros((1, len(AUDIO)), np.float32)
            if not silent:
                audio = audio_features(samples, self.audio_rate)
        except Exception as error:  # a damaged file can raise any error of the libraries
            reason = printable(getattr(error, "strerror", None) or error, 160)
            return Outcome(FAILED, f"cannot be read ({reason})")
        faces = vision.any(axis=1).sum() / max(1, len(vision))  # fraction of the frames
        if silent and not faces:
            empty = len(samples) == 0 and len(vision) == 0
            return Outcome(FAILED, "has no length" if empty else "has neither sound nor a face")
        if len(vision) == 0:
            vision = np.zeros((1, len(VISION)), np.float32)
        for file, array in zip(self.files(clip), (audio, vision), strict=True):
            _write_array(file, array)
        return _outcome(silent, faces)

    def files(self, clip: Clip) -> list[Path]:
        """The files of audio and vision."""
        return [self.output / key / f"{clip.name}.npy" for key in MODALITIES]

    def is_done(self, clip: Clip) -> bool:
        """Whether both files exist and are not older than the clip."""
        newest = clip.sound.stat().st_mtime
        if clip.video:
            newest = max(newest, clip.video.stat().st_mtime)
        files = self.files(clip)
        if not all(file.is_file() for file in files):
            return False
        oldest = min(file.stat().st_mtime for file in files)
        return oldest >= newest


def _write_array(file: Path, array: np.ndarray) -> None:
    """Write a .npy file completely or not at all."""
    write_atomically(file, lambda opened: np.save(opened, array))


def _outcome(silent: bool, faces: float) -> Outcome:
    """The outcome of a clip; `faces` is the fraction of the frames with a face."""
    remarks = []
    kind = COMPLETE
    if not faces:
        kind = WITHOUT_FACE
        remarks.append("no face found; its vision features are zeros")
    elif faces < 0.5:
        remarks.append(f"a face in only {faces:.0%} of the frames")
    if silent:
        kind = WITHOUT_SOUND
        remarks.insert(0, "no sound; its audio features are zeros")
    return Outcome(kind, "; ".join(remarks))


def describe(audio_rate: float, vision_rate: float) -> dict:
    """Describe the features, for features.json.

    Args:
        audio_rate: Steps per second.
        vision_rate: Steps per second.

    Returns:
        The version of the extractor and of libraries, rates, and columns with their units.

    Raises:
        ConfigError: A library is missing.
    """
    try:
        import av  # noqa: F401
        from librosa import feature, pyin  # noqa: F401
        from mediapipe.python.solutions import face_mesh  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{error}. On Python 3.11 or 3.12 run: pip install -r requirements-extract.txt"
        ) from error
    return {
        "extractor": "dataset.extract 1",
        "versions": {name: version(name) for name in ("av", "librosa", "mediapipe", "numpy")},
        "rates (Hz)": {"audio": audio_rate, "vision": vision_rate},
        "columns": {"audio": AUDIO, "vision": VISION},
    }


def _check_earlier_features(file: Path, description: dict) -> None:
    """Raise ConfigError if the output has features of other versions or rates."""
    if not file.exists():
        return
    earlier = read_json(file)
    for key in ("extractor", "versions", "rates (Hz)"):
        if not isinstance(earlier, dict) or earlier.get(key) != description[key]:
            raise ConfigError(
                f"{file}: the folder contains features of other rates or versions. Choose another "
                "folder with -o."
            )


def _prepare_worker() -> None:
    """Set up a process of the pool."""
    threadpool_limits(1)  # more threads would change the order of summation
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # MediaPipe logs to it


def run(clips: Sequence[Clip], extractor: Extractor, jobs: int) -> dict[str, Outcome]:
    """Extract clips in several processes, and print remarks.

    Args:
        clips: The clips; those whose features already exist are skipped.
        extractor: Extracts one clip.
        jobs: The number of processes.

    Returns:
        The outcome of each clip, by its name.

    Raises:
        DataError: A process died.
    """
    outcomes = {clip.name: Outcome(DONE_BEFORE) for clip in clips}
    todo = [clip for clip in clips if not extractor.is_done(clip)]
    remaining = list(todo)
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _prepare_worker)
    try:
        results = tqdm(pool.map(extractor, todo), total=len(todo), unit="clip")
        for clip, outcome in zip(todo, results, strict=True):
            remaining.remove(clip)
            outcomes[clip.name] = outcome
            if outcome.remark:
                tqdm.write(f"{clip.name}: {outcome.remark}.")
    except BrokenProcessPool as error:
        raise DataError(
            f"{remaining[0].name}: a process died at this clip, or soon after. If memory ran out, "
            "use a smaller -j; if -j 1 stops at the same clip, remove the clip."
        ) from error
    finally:
        for process in active_children():  # after Ctrl-C some are still running
            process.terminate()
        pool.shutdown(cancel_futures=True)
    return outcomes


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].

    Returns:
        The options.

    Raises:
        ConfigError: An option is invalid.
    """
    description = "Extract features of video clips."
    parser = ArgumentParser(prog="python -m dataset.extract", description=description)
    add = parser.add_argument
    videos = ", ".join(VIDEO)
    add("clips", type=Path, help=f"folder of <id>{videos}; the sound is taken from <id>{SOUND}")
    add("-o", "--output", type=Path, required=True, metavar="DIR")
    steps = "steps per second, default: %(default)s"
    add("--audio-rate", type=float, default=20, metavar="HZ", help=steps)
    add("--vision-rate", type=float, default=5, metavar="HZ", help=steps)
    add("-j", "--jobs", type=int, default=1, metavar="N", help="processes, default: 1")
    options = parser.parse_args(argv)
    positive = options.audio_rate > 0 and options.vision_rate > 0 and options.jobs >= 1
    if not positive or SAMPLE_RATE % options.audio_rate:
        raise ConfigError(
            "--audio-rate and --vision-rate must be above 0 Hz, --audio-rate a divisor of "
            f"{SAMPLE_RATE}; -j must be at least 1."
        )
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Command-line arguments; by default sys.argv[1:].

    Raises:
        ConfigError: The options are invalid, or a library is missing.
        DataError: No clips are found, or some failed; the others are extracted.
    """
    options = read_options(argv)
    clips = find_clips(options.clips)
    description = describe(options.audio_rate, options.vision_rate)
    file = options.output / "features.json"
    _check_earlier_features(file, description)
    write_json(file, description)
    extractor = Extractor(options.output, options.audio_rate, options.vision_rate)
    outcomes = run(clips, extractor, options.jobs)

    counts = Counter(outcome.kind for outcome in outcomes.values())
    shown = []
    for kind in (DONE_BEFORE, COMPLETE, WITHOUT_SOUND, WITHOUT_FACE, FAILED):
        if counts[kind]:
            shown.append(f"{counts[kind]} {kind}")
    print(f"{len(clips)} clips: {', '.join(shown)}.")
    failed = [name for name, outcome in outcomes.items() if outcome.kind == FAILED]
    if failed:
        raise DataError(
            f"{len(failed)} clips failed ({shorten(failed)}): replace them, or leave out their "
            "rows."
        )


if __name__ == "__main__":
    sys.exit(run_command(main, lambda: "The same command continues."))
