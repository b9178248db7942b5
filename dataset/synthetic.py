"""Built-in synthetic data: sentences whose sentiment follows from stated rules, with audio and vision to match.

It needs no download, and is an ordinary pickle in the MMSA layout at MOSI's shapes, read like any other.

**The rules.** An utterance is one to three clauses such as "the acting was not very good". The valence of a clause is
that of its sentiment word (VALENCES); an intensifier multiplies it (INTENSIFIERS); "not" before them multiplies it by
NEGATION. Everything else counts nothing. The label is the mean of the clauses' valences, clipped to [-3, 3] and
rounded to steps of 0.2, as the mean of five raters is in MOSI.

**The other modalities** carry the label with noise: one audio and four vision channels drift with it, beneath a
speaker's offset, an oscillation and noise that have nothing to do with it. So text informs most, vision and audio
less, as in MOSI.
"""

import numpy as np

SIZES = {"train": 600, "valid": 120, "test": 240}
SEED = 2023
STEPS, AUDIO_WIDTH, VISION_WIDTH, TEXT_WIDTH = 50, 5, 20, 300
CLIPS_PER_VIDEO = 12
SYNTHETIC_FILE = "SYNTHETIC/aligned_50.pkl"  # its featurePath in the config

VALENCES = {
    "wonderful": 3.0, "amazing": 3.0, "brilliant": 2.6, "fantastic": 2.6, "great": 2.2, "delightful": 2.2,
    "lovely": 1.8, "funny": 1.8, "good": 1.6, "charming": 1.4, "nice": 1.2, "pleasant": 1.0, "decent": 0.8,
    "okay": 0.4, "ordinary": 0.0, "average": -0.2, "flat": -0.6, "slow": -0.8, "weak": -1.2, "dull": -1.2,
    "bad": -1.6, "poor": -1.6, "boring": -1.8, "annoying": -2.0, "stupid": -2.2, "ugly": -2.2, "awful": -2.6,
    "dreadful": -2.6, "terrible": -3.0, "horrible": -3.0,
}  # fmt: skip
INTENSIFIERS = {"very": 1.3, "really": 1.3, "extremely": 1.5, "slightly": 0.5, "somewhat": 0.6}
NEGATION = -0.6
NOUNS = ("movie", "film", "story", "plot", "acting", "ending", "music", "script", "cast", "scene", "dialogue",
         "camera", "hero", "villain", "humor", "director", "picture", "costumes", "effects", "song")  # fmt: skip
FILLERS = ("um", "uh", "well", "so", "like", "you know", "i think", "i mean", "to be honest", "in my opinion")
COPULAS = ("was", "is", "seemed", "felt", "looked")
JOINTS = ("and", "but", "also", ",")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> list[str]:
    """Every token in the order of its id: dataset/synthetic_bert/vocab.txt, a token a line."""
    phrases = [*VALENCES, *INTENSIFIERS, "not", *NOUNS, *FILLERS, *COPULAS, *JOINTS, "the", "this", "."]
    words = [word for phrase in phrases for word in phrase.split()]
    return [*SPECIAL_TOKENS, *dict.fromkeys(words)]


def label_of(sentence: str) -> float:
    """The label that the rules give a sentence of this vocabulary."""
    valences, factor = [], 1.0
    for word in sentence.split():
        if word in VALENCES:
            valences.append(VALENCES[word] * factor)
            factor = 1.0
        elif word == "not" or word in INTENSIFIERS:
            factor *= INTENSIFIERS.get(word, NEGATION)
    return float(np.clip(np.round(np.mean(valences) / 0.2) * 0.2, -3, 3))


def generate() -> dict[str, dict]:
    """The whole data set, the same at every call: {split: {field: array}} (the fields of the MMSA layout)."""
    rng = np.random.Generator(np.random.PCG64(SEED))  # named, since default_rng may change its generator one day
    words = vocabulary()
    vectors = rng.standard_normal((len(words), TEXT_WIDTH)).astype(np.float32)  # text features for use_bert = false
    vectors[0] = 0
    token_ids = {word: i for i, word in enumerate(words)}
    # A fixed mixing for the whole set: which vision channels move with the sentiment, and how the others go along.
    vision_mixing = rng.standard_normal((3, VISION_WIDTH)) * 0.5
    content, video = {}, 0
    for split, size in SIZES.items():
        utterances = []
        for i in range(size):
            if i % CLIPS_PER_VIDEO == 0:  # a video has one speaker, and lies in one split
                video += 1
                audio_offset, vision_offset = rng.normal(0, 0.7, AUDIO_WIDTH), rng.normal(0, 0.7, VISION_WIDTH)
            sentence = _write_sentence(rng)
            label = label_of(sentence)
            ids = [token_ids[word] for word in ("[CLS]", *sentence.split(), "[SEP]")]
            real = np.arange(STEPS) < len(ids)  # what follows is padding, zero in every modality
            tokens = np.zeros((3, STEPS), np.float32)  # input ids, attention mask, segment ids
            tokens[0, real], tokens[1] = ids, real
            audio, vision = _audio(rng, label) + audio_offset, _vision(rng, label, vision_mixing) + vision_offset
            utterances.append({
                "raw_text": sentence,
                "id": f"syn{video:03d}$_${i % CLIPS_PER_VIDEO}",
                "text": vectors[tokens[0].astype(int)],
                "text_bert": tokens,
                "audio": np.where(real[:, None], audio, 0).astype(np.float32),
                "vision": np.where(real[:, None], vision, 0).astype(np.float32),
                "audio_lengths": len(ids),
                "vision_lengths": len(ids),
                "regression_labels": np.float32(label),
            })  # fmt: skip
        content[split] = {field: np.array([row[field] for row in utterances]) for field in utterances[0]}
    return content


def _write_sentence(rng: np.random.Generator) -> str:
    """A mood between -3 and 3 picks the clauses; the label still follows from the words alone."""
    mood = rng.uniform(-3.2, 3.2)
    clauses = []
    for _ in range(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2])):
        negated = rng.random() < 0.12
        intensifier = str(rng.choice(list(INTENSIFIERS))) if rng.random() < 0.35 else ""
        factor = INTENSIFIERS.get(intensifier, 1.0) * (NEGATION if negated else 1.0)
        aim = (mood + rng.normal(0, 0.6)) / factor
        # The nearest of a handful: the word suits the mood, and every word gets its turn.
        candidates = rng.choice(list(VALENCES), size=8, replace=False)
        word = min(candidates, key=lambda candidate: abs(VALENCES[candidate] - aim))
        parts = [rng.choice(["the", "this"]), rng.choice(NOUNS), rng.choice(COPULAS)]
        parts += ["not"] * negated + [intensifier] * bool(intensifier) + [word]
        if rng.random() < 0.4:
            parts.insert(0, rng.choice(FILLERS))
        clauses.append(" ".join(map(str, parts)))
    sentence = clauses[0]
    for clause in clauses[1:]:
        sentence += f" {rng.choice(JOINTS)} {clause}"
    return sentence + " ."


def _audio(rng: np.random.Generator, label: float) -> np.ndarray:
    """(STEPS, AUDIO_WIDTH): pitch (channel 1) rises with the sentiment; all channels wobble with the syllables."""
    steps = np.arange(STEPS)
    heard = 0.4 * label + rng.normal(0, 0.8)  # one utterance is spoken flatly, another overdone
    wobble = np.sin(steps * rng.uniform(0.5, 1.5) + rng.uniform(0, 6))
    signal = rng.normal(0, 0.5, (STEPS, AUDIO_WIDTH)) + wobble[:, None] * rng.normal(0, 0.5, AUDIO_WIDTH)
    signal[:, 1] += heard * np.linspace(0.5, 1.5, STEPS)
    return signal


def _vision(rng: np.random.Generator, label: float, mixing: np.ndarray) -> np.ndarray:
    """(STEPS, VISION_WIDTH): a smile (channels 2 to 5) that comes and goes; head and light move all channels."""
    seen = 0.4 * label + rng.normal(0, 0.6)
    smile = seen * np.clip(np.sin(np.linspace(0, np.pi, STEPS) + rng.uniform(-0.5, 0.5)) + 0.3, 0, None)
    drift = np.cumsum(rng.normal(0, 0.1, (STEPS, len(mixing))), axis=0) @ mixing
    signal = rng.normal(0, 0.5, (STEPS, VISION_WIDTH)) + drift
    signal[:, 2:6] += smile[:, None]
    return signal
