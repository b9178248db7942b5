"""Built-in synthetic data: sentences whose sentiment follows from rules, with audio and vision.

It needs no download. It is a pickle in the MMSA layout, with the shapes of MOSI.

**The rules.** An utterance is one to three clauses such as "the acting was not very good". The
valence of a clause is that of its sentiment word (VALENCES); an intensifier multiplies it
(INTENSIFIERS); "not" before them multiplies it by NEGATION. Nothing else counts. The label is the
mean of the clauses' valences, clipped to [-3, 3] and rounded to steps of 0.2, as the mean of five
raters is in MOSI.

**The other modalities** carry the label with noise: one audio and four vision channels drift with
it, under a speaker's offset, an oscillation and noise that are unrelated to it. So text is the most
informative modality, as in MOSI.
"""

import numpy as np

SIZES = {"train": 600, "valid": 120, "test": 240}
SEED = 2023
STEPS = 50
AUDIO_WIDTH = 5
VISION_WIDTH = 20
TEXT_WIDTH = 300
CLIPS_PER_VIDEO = 12
SYNTHETIC_FILE = "SYNTHETIC/aligned_50.pkl"  # its featurePath in the config

VALENCES = {
    "wonderful": 3.0, "amazing": 3.0, "brilliant": 2.6, "fantastic": 2.6, "great": 2.2,
    "delightful": 2.2, "lovely": 1.8, "funny": 1.8, "good": 1.6, "charming": 1.4, "nice": 1.2,
    "pleasant": 1.0, "decent": 0.8, "okay": 0.4, "ordinary": 0.0, "average": -0.2, "flat": -0.6,
    "slow": -0.8, "weak": -1.2, "dull": -1.2, "bad": -1.6, "poor": -1.6, "boring": -1.8,
    "annoying": -2.0, "stupid": -2.2, "ugly": -2.2, "awful": -2.6, "dreadful": -2.6,
    "terrible": -3.0, "horrible": -3.0,
}  # fmt: skip
INTENSIFIERS = {"very": 1.3, "really": 1.3, "extremely": 1.5, "slightly": 0.5, "somewhat": 0.6}
NEGATION = -0.6
NOUNS = (
    "movie", "film", "story", "plot", "acting", "ending", "music", "script", "cast", "scene",
    "dialogue", "camera", "hero", "villain", "humor", "director", "picture", "costumes", "effects",
    "song",
)  # fmt: skip
FILLERS = (
    "um", "uh", "well", "so", "like", "you know", "i think", "i mean", "to be honest",
    "in my opinion",
)  # fmt: skip
COPULAS = ("was", "is", "seemed", "felt", "looked")
JOINTS = ("and", "but", "also", ",")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> list[str]:
    """List every token in the order of its id.

    Returns:
        The lines of dataset/synthetic_bert/vocab.txt.
    """
    tokens = list(SPECIAL_TOKENS)
    phrases = [*VALENCES, *INTENSIFIERS, "not", *NOUNS, *FILLERS, *COPULAS, *JOINTS]
    for phrase in [*phrases, "the", "this", "."]:
        for word in phrase.split():
            if word not in tokens:
                tokens.append(word)
    return tokens


def label_of(sentence: str) -> float:
    """Compute the label that the rules give a sentence.

    Args:
        sentence: A sentence of this vocabulary.

    Returns:
        The label, in [-3, 3].
    """
    valences = []
    factor = 1.0
    for word in sentence.split():
        if word in VALENCES:
            valences.append(VALENCES[word] * factor)
            factor = 1.0
        elif word == "not":
            factor *= NEGATION
        elif word in INTENSIFIERS:
            factor *= INTENSIFIERS[word]
    return float(np.clip(np.round(np.mean(valences) / 0.2) * 0.2, -3, 3))


def generate() -> dict[str, dict]:
    """Generate the whole data set, which is the same at every call.

    Returns:
        {split: {field: array}}, the fields of the MMSA layout.
    """
    # PCG64 by name, since a later NumPy may change the generator of default_rng.
    rng = np.random.Generator(np.random.PCG64(SEED))
    words = vocabulary()
    token_ids = {word: i for i, word in enumerate(words)}
    # Text features, for use_bert=false.
    vectors = rng.standard_normal((len(words), TEXT_WIDTH)).astype(np.float32)
    vectors[0] = 0
    # How the vision channels move together, in the whole data set.
    mixing = rng.standard_normal((3, VISION_WIDTH)) * 0.5
    content = {}
    video = 0
    for split, size in SIZES.items():
        utterances = []
        for i in range(size):
            if i % CLIPS_PER_VIDEO == 0:  # a video has one speaker, and belongs to one split
                video += 1
                audio_offset = rng.normal(0, 0.7, AUDIO_WIDTH)
                vision_offset = rng.normal(0, 0.7, VISION_WIDTH)
            sentence = _write_sentence(rng)
            label = label_of(sentence)
            audio = _audio(rng, label) + audio_offset
            vision = _vision(rng, label, mixing) + vision_offset
            name = f"syn{video:03d}$_${i % CLIPS_PER_VIDEO}"
            fields = _utterance(name, sentence, label, audio, vision, token_ids, vectors)
            utterances.append(fields)
        content[split] = {}
        for field in utterances[0]:
            content[split][field] = np.array([fields[field] for fields in utterances])
    return content


def _utterance(
    name: str,
    sentence: str,
    label: float,
    audio: np.ndarray,
    vision: np.ndarray,
    token_ids: dict[str, int],
    vectors: np.ndarray,
) -> dict:
    """The fields of one utterance; audio (STEPS, AUDIO_WIDTH), vision (STEPS, VISION_WIDTH)."""
    ids = [token_ids[word] for word in ("[CLS]", *sentence.split(), "[SEP]")]
    real = np.arange(STEPS) < len(ids)  # the rest is padding, zero in every modality
    tokens = np.zeros((3, STEPS), np.float32)  # token ids, attention mask, segment ids
    tokens[0, real] = ids
    tokens[1] = real
    return {
        "raw_text": sentence,
        "id": name,
        "text": vectors[tokens[0].astype(int)],
        "text_bert": tokens,
        "audio": np.where(real[:, None], audio, 0).astype(np.float32),
        "vision": np.where(real[:, None], vision, 0).astype(np.float32),
        "audio_lengths": len(ids),
        "vision_lengths": len(ids),
        "regression_labels": np.float32(label),
    }


def _write_sentence(rng: np.random.Generator) -> str:
    """A sentence in a mood between -3 and 3; its label still follows from the words alone."""
    mood = rng.uniform(-3.2, 3.2)
    clauses = []
    for _ in range(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2])):
        clauses.append(_write_clause(rng, mood))
    sentence = clauses[0]
    for clause in clauses[1:]:
        sentence += f" {rng.choice(JOINTS)} {clause}"
    return sentence + " ."


def _write_clause(rng: np.random.Generator, mood: float) -> str:
    """A clause whose valence is near the mood."""
    factor = 1.0
    modifiers = []
    if rng.random() < 0.12:
        modifiers.append("not")
        factor = NEGATION
    if rng.random() < 0.35:
        intensifier = str(rng.choice(list(INTENSIFIERS)))
        modifiers.append(intensifier)
        factor = INTENSIFIERS[intensifier] * factor
    aim = (mood + rng.normal(0, 0.6)) / factor
    # The nearest of a few: the word suits the mood, and every word is used.
    candidates = rng.choice(list(VALENCES), size=8, replace=False)
    distances = [abs(VALENCES[candidate] - aim) for candidate in candidates]
    word = candidates[np.argmin(distances)]
    subject = [rng.choice(["the", "this"]), rng.choice(NOUNS), rng.choice(COPULAS)]
    words = [*subject, *modifiers, word]
    if rng.random() < 0.4:
        words.insert(0, rng.choice(FILLERS))
    return " ".join(words)


def _audio(rng: np.random.Generator, label: float) -> np.ndarray:
    """(STEPS, AUDIO_WIDTH): channel 1, the pitch, rises with the sentiment; all oscillate."""
    steps = np.arange(STEPS)
    expressed = 0.4 * label + rng.normal(0, 0.8)  # one utterance is spoken flatly, another overdone
    wobble = np.sin(steps * rng.uniform(0.5, 1.5) + rng.uniform(0, 6))
    noise = rng.normal(0, 0.5, (STEPS, AUDIO_WIDTH))
    signal = noise + wobble[:, None] * rng.normal(0, 0.5, AUDIO_WIDTH)
    signal[:, 1] += expressed * np.linspace(0.5, 1.5, STEPS)
    return signal


def _vision(rng: np.random.Generator, label: float, mixing: np.ndarray) -> np.ndarray:
    """(STEPS, VISION_WIDTH): a smile comes and goes in channels 2 to 5; the head moves all."""
    expressed = 0.4 * label + rng.normal(0, 0.6)
    course = np.sin(np.linspace(0, np.pi, STEPS) + rng.uniform(-0.5, 0.5))
    smile = expressed * np.clip(course + 0.3, 0, None)
    drift = np.cumsum(rng.normal(0, 0.1, (STEPS, len(mixing))), axis=0) @ mixing
    signal = rng.normal(0, 0.5, (STEPS, VISION_WIDTH)) + drift
    signal[:, 2:6] += smile[:, None]
    return signal
