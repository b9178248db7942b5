"""Every setting of a run: its type, its range, its meaning, and the release's value as its default."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

# Keys of this family's files that choose nothing here: accepted, with a warning.
IGNORED_KEYS = ("num_classes", "language", "train_samples", "need_model_aligned", "seq_lens", "optimizer", "scheduler")

# What `objective` chooses for each switch that is null; the paper says nothing of the others.
RELEASE = {
    "ort": "batch", "margin": "release", "homo_repr": "off", "hetero_repr": "min_cosine", "gd_prior": "release",
    "fusion": "sigmoid", "leftover_batches": "drop", "weight_decay_applied": False, "valid_loss": "batch_mean",
}  # fmt: skip
PAPER = {"ort": "paper", "margin": "paper", "hetero_repr": "off", "gd_prior": "none", "fusion": "gate"}
PRESETS = {"release": RELEASE, "paper": RELEASE | PAPER}

Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Two, Three, Six = (Field(min_length=n, max_length=n) for n in (2, 3, 6))
Representation = Literal["off", "l1", "min_cosine"]


def knob(default, description: str):
    return Field(default, description=description)


class Strict(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """In which "1" is no number and 1 no flag; an int is still a float."""


class DMDConfig(Strict):
    """The settings of one data set, merged and flat; lengths and names as in the released config."""

    # Data
    featurePath: Name = knob(..., "feature pickle, relative to dataset_root_dir or absolute")
    feature_dims: Annotated[list[Width], Three] = knob([768, 5, 20], "widths of text (`pretrained`'s), audio, vision")
    need_data_aligned: bool = knob(True, "aligned features, or each modality at its own rate")
    dataset_root_dir: Name = knob("./dataset", "folder that a relative featurePath starts from")

    # Text encoder
    use_bert: bool = knob(True, "encode the tokens with `pretrained`; false: the file's text features")
    use_finetune: bool = knob(True, "train the text encoder too; false: its weights stay as loaded")
    transformers: Literal["bert", "roberta", "auto"] = knob("bert", "what `pretrained` is; auto: any encoder")
    pretrained: Name = knob("bert-base-uncased", "text encoder: hub name, or folder with config.json")

    # Model
    dst_feature_dim_nheads: Annotated[list[Width], Two] = knob([50, 10], "[d, h]: common width, attention heads")
    feature_decoupling: bool = knob(True, "specific and common parts; false: both are the projected features")
    cross_modal_attention: bool = knob(True, "between specific parts; false: the memory reads each part twice")
    nlevels: Annotated[int, Field(ge=1, le=64)] = knob(4, "layers of each transformer; over memories at least 3")
    attn_mask: bool = knob(True, "hide later steps from a query")
    conv1d_kernel_size_l: Width = knob(5, "k_l, steps that the text projection spans")
    conv1d_kernel_size_a: Width = knob(5, "k_a, as k_l for audio")
    conv1d_kernel_size_v: Width = knob(5, "k_v, as k_l for vision")
    text_dropout: Probability = knob(0.5, "on the text features")
    attn_dropout: Probability = knob(0.3, "on attention weights: text as source, memories")
    attn_dropout_a: Probability = knob(0.2, "on attention weights: audio as source")
    attn_dropout_v: Probability = knob(0.0, "on attention weights: vision as source")
    relu_dropout: Probability = knob(0.0, "inside the transformers' feed-forward layers")
    embed_dropout: Probability = knob(0.2, "on the transformers' inputs")
    res_dropout: Probability = knob(0.0, "before each residual sum of a transformer")
    output_dropout: Probability = knob(0.5, "in every prediction head")
    fast: bool = knob(True, "attention of models/cpu_attention.py; on a GPU, like encoders run together")

    # Switches: where paper and release differ. null: as `objective` says (PRESETS)
    objective: Literal["release", "paper"] = knob("release", "chooses the switches below that are null")
    ort: Literal["batch", "feature", "paper"] | None = knob(None, "L_ort over batch or width (paper: not clamped)")
    margin: Literal["release", "paper"] | None = knob(None, "L_mar: margin_slope·|Δy|; or triplets and margin_alpha")
    homo_repr: Representation | None = knob(None, "HomoGD's representation term: none, L1, or cosine (lowered)")
    hetero_repr: Representation | None = knob(None, "as homo_repr, of HeteroGD")
    gd_prior: Literal["release", "none"] | None = knob(None, "edges: softmax + prior and its pull; or softmax alone")
    fusion: Literal["sigmoid", "gate"] | None = knob(None, "into the last head: sigmoid(Wx), or sigmoid(Wx)·x")
    leftover_batches: Literal["drop", "step"] | None = knob(None, "what an epoch's incomplete last group becomes")
    weight_decay_applied: bool | None = knob(None, "give weight_decay to Adam; false: it has no effect")
    valid_loss: Literal["batch_mean", "sample_mean"] | None = knob(None, "an evaluation's Loss: its mean over what")

    # Objective
    lambda_decoupling: NonNegativeFloat = knob(0.1, "λ1, weight of the decoupling losses")
    lambda_distillation: NonNegativeFloat = knob(0.05, "λ2, weight of the distillation losses")
    gamma: NonNegativeFloat = knob(0.1, "γ, weight of margin and orthogonality among the decoupling losses")
    recon_weight: NonNegativeFloat = knob(1.0, "weight of L_rec inside λ1 · L_dec; 0 leaves it out")
    cycle_weight: NonNegativeFloat = knob(1.0, "weight of L_cyc inside λ1 · L_dec")
    margin_weight: NonNegativeFloat = knob(1.0, "weight of L_mar inside λ1 · γ")
    ort_weight: NonNegativeFloat = knob(1.0, "weight of L_ort inside λ1 · γ")
    homo_weight: NonNegativeFloat = knob(1.0, "weight of HomoGD's L_dtl inside λ2")
    hetero_weight: NonNegativeFloat = knob(1.0, "weight of HeteroGD's L_dtl inside λ2")
    margin_slope: NonNegativeFloat = knob(0.15, "margin per unit of label distance, for margin release")
    margin_alpha: NonNegativeFloat = knob(0.1, "α, the constant margin, for margin paper")
    homo_gd_size: Width = knob(64, "node width of the homogeneous graph")
    hetero_gd_size: Width = knob(32, "node width of the heterogeneous graph")
    homo_gd_prior: Annotated[list[float], Six] = knob([0, 0, 1, 0, 1, 0], "pattern over V→L, A→L, L→V, A→V, L→A, V→A")
    hetero_gd_prior: Annotated[list[float], Six] = knob([0, 0, 1, 0, 1, 1], "as homo_gd_prior")
    gd_prior_temperature: PositiveFloat = knob(0.25, "divides a prior pattern before its softmax")
    gd_edge_temperature: PositiveFloat = knob(8.0, "divides the edge scores before their softmax")
    gd_reg_weight: NonNegativeFloat = knob(10.0, "pull of the mean edges to the prior")
    gd_repr_weight: NonNegativeFloat = knob(10.0, "weight of the representation terms")

    # Training
    batch_size: Count = knob(16, "utterances in a batch")
    eval_batch_size: Count = knob(64, "utterances in a batch of evaluation; changes the speed alone")
    update_epochs: Count = knob(10, "batches whose gradients are added up for a step of the optimizer")
    grad_clip: float = knob(0.6, "largest absolute gradient; -1: no clipping")
    learning_rate: PositiveFloat = knob(1e-4, "Adam's initial learning rate")
    learning_rate_bert: PositiveFloat | None = knob(None, "that of the text encoder; null: learning_rate")
    adam_betas: Annotated[list[Probability], Two] = knob([0.9, 0.999], "β1, β2 of Adam")
    adam_eps: PositiveFloat = knob(1e-8, "ε of Adam")
    scheduler_factor: Annotated[float, Field(gt=0, lt=1)] = knob(0.5, "of the learning rates when Loss on valid stalls")
    patience: NonNegativeInt = knob(5, "epochs without a lower Loss before that")
    weight_decay: NonNegativeFloat = knob(0.005, "Adam's L2 term, where weight_decay_applied")
    early_stop: Count = knob(10, "epochs without a new best before training ends")
    max_epochs: Count | None = knob(None, "stop here at the latest; null: only early stopping")
    KeyEval: Literal["Loss", "MAE", "Acc_2", "F1_score", "Acc_7"] = knob("Loss", "metric of valid that picks the epoch")
    keep_checkpoints: Count | Literal["all"] = knob("all", "of how many last epochs files stay, besides the best one")
    min_improvement: NonNegativeFloat = knob(1e-6, "least change of KeyEval that makes a new best")

    @model_validator(mode="after")
    def _resolve(self) -> "DMDConfig":
        for key, value in PRESETS[self.objective].items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        width, heads = self.dst_feature_dim_nheads
        if width % heads or width % 2:
            raise ValueError(f"dst_feature_dim_nheads is [{width}, {heads}]; d must be even and divisible by h")
        if not self.feature_decoupling and self.lambda_decoupling > 0:
            raise ValueError(f"lambda_decoupling is {self.lambda_decoupling}; it must be 0 without feature_decoupling")
        if self.grad_clip <= 0 and self.grad_clip != -1:
            raise ValueError(f"grad_clip is {self.grad_clip}; allowed: greater than 0, or -1 for no clipping")
        return self
