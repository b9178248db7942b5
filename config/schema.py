"""Every setting of a run: its type, its range, its meaning, and the release's value as its default."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

IGNORED_KEYS = ("num_classes", "language", "train_samples", "need_model_aligned")
"""Accepted so that existing files load, and without effect."""

PRESETS = {
    "release": {
        "ort": "batch",
        "margin": "release",
        "homo_repr": "off",
        "hetero_repr": "cosine_apart",
        "gd_prior": "release",
        "fusion": "sigmoid",
        "leftover_batches": "drop",
        "weight_decay_applied": False,
        "valid_loss": "batch_mean",
    },
    # The paper has no word on the recipe, so that the last three are the release's.
    "paper": {
        "ort": "paper",
        "margin": "paper",
        "homo_repr": "off",
        "hetero_repr": "off",
        "gd_prior": "none",
        "fusion": "gate",
        "leftover_batches": "drop",
        "weight_decay_applied": False,
        "valid_loss": "batch_mean",
    },
}
"""What `objective` chooses for each switch that is null."""

Flag = StrictBool
Name = Annotated[StrictStr, Field(min_length=1)]
Count = Annotated[StrictInt, Field(ge=1, le=2**31 - 1)]
Width = Annotated[StrictInt, Field(ge=1, le=2**16)]
Depth = Annotated[StrictInt, Field(ge=1, le=64)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Representation = Literal["off", "l1", "cosine_apart"]
Pattern = Annotated[list[float], Field(min_length=6, max_length=6)]


class DMDConfig(BaseModel):
    """The settings of one data set, merged and flat; lengths and names as in the released config."""

    # strict: "1" is no number and 1 no flag; an int is still a float.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    # Data
    featurePath: Name = Field(description="feature pickle, relative to dataset_root_dir or absolute")
    feature_dims: Annotated[list[Width], Field(min_length=3, max_length=3)] = Field(
        [768, 5, 20], description="widths of text, audio, vision"
    )
    need_data_aligned: Flag = Field(True, description="aligned features, or each modality at its own rate")
    dataset_root_dir: Name = Field("./dataset", description="folder that a relative featurePath starts from")

    # Text encoder
    use_bert: Flag = Field(True, description="text from BERT's last hidden states; off: ready-made features")
    use_finetune: Flag = Field(True, description="train BERT along with the model")
    transformers: Literal["bert"] = Field("bert", description="kind of text encoder")
    pretrained: Name = Field("bert-base-uncased", description="name or folder of the BERT weights")

    # Model
    dst_feature_dim_nheads: Annotated[list[Width], Field(min_length=2, max_length=2)] = Field(
        [50, 10], description="[d, h]: common width, attention heads"
    )
    feature_decoupling: Flag = Field(
        True, description="split a modality into specific and common part; off: both are the projected features"
    )
    cross_modal_attention: Flag = Field(
        True, description="specific parts read each other's; off: each goes to its memory twice instead"
    )
    nlevels: Depth = Field(
        4, description="layers of a cross-modal transformer; self-attention over memories has at least 3"
    )
    attn_mask: Flag = Field(True, description="hide later steps from a query")
    conv1d_kernel_size_l: Width = Field(5, description="k_l, steps that the text projection spans")
    conv1d_kernel_size_a: Width = Field(5, description="k_a, as k_l for audio")
    conv1d_kernel_size_v: Width = Field(5, description="k_v, as k_l for vision")
    text_dropout: Probability = Field(0.5, description="on the text features")
    attn_dropout: Probability = Field(0.3, description="on attention weights: text as source, memories")
    attn_dropout_a: Probability = Field(0.2, description="on attention weights: audio as source")
    attn_dropout_v: Probability = Field(0.0, description="on attention weights: vision as source")
    relu_dropout: Probability = Field(0.0, description="inside the transformers' feed-forward layers")
    embed_dropout: Probability = Field(0.2, description="on the transformers' inputs")
    res_dropout: Probability = Field(0.0, description="before each residual sum of a transformer")
    output_dropout: Probability = Field(0.5, description="in every prediction head")

    fast: Flag = Field(True, description="the faster forms of models/fast/, where equal; off: the plain model")

    # Switches: where paper and release differ. null: as `objective` says (PRESETS)
    objective: Literal["release", "paper"] = Field("release", description="chooses the switches that are not set")
    ort: Literal["batch", "feature", "paper"] | None = Field(
        None, description="cosine of L_ort: over the batch, clamped; over the width, clamped; over the width, as it is"
    )
    margin: Literal["release", "paper"] | None = Field(
        None, description="L_mar: margin_slope·|Δy| and any modality; or triplets across modalities and margin_alpha"
    )
    homo_repr: Representation | None = Field(
        None, description="representation term of HomoGD: none; L1 distance; positive cosine (pushes apart)"
    )
    hetero_repr: Representation | None = Field(None, description="as homo_repr, of HeteroGD")
    gd_prior: Literal["release", "none"] | None = Field(
        None, description="edges: softmax + prior, pulled to the prior; or the softmax alone"
    )
    fusion: Literal["sigmoid", "gate"] | None = Field(
        None, description="into the last head: sigmoid(Wx), or sigmoid(Wx)·x"
    )
    leftover_batches: Literal["drop", "step"] | None = Field(
        None, description="an epoch's last, incomplete group of batches: never used, or a step of its own"
    )
    weight_decay_applied: Flag | None = Field(None, description="hand weight_decay to Adam")
    valid_loss: Literal["batch_mean", "sample_mean"] | None = Field(
        None, description="Loss of an evaluation: mean over batches, or over utterances"
    )

    # Objective
    lambda_decoupling: NonNegative = Field(0.1, description="λ1, weight of the decoupling losses")
    lambda_distillation: NonNegative = Field(0.05, description="λ2, weight of the distillation losses")
    gamma: NonNegative = Field(0.1, description="γ, weight of margin and orthogonality among the decoupling losses")
    recon_weight: NonNegative = Field(1.0, description="of the reconstruction loss, besides λ1; 0 leaves it out")
    cycle_weight: NonNegative = Field(1.0, description="of the cycle loss, besides λ1")
    margin_weight: NonNegative = Field(1.0, description="of the margin loss, besides λ1 and γ")
    ort_weight: NonNegative = Field(1.0, description="of the orthogonality loss, besides λ1 and γ")
    homo_weight: NonNegative = Field(1.0, description="of HomoGD, besides λ2")
    hetero_weight: NonNegative = Field(1.0, description="of HeteroGD, besides λ2")
    margin_slope: NonNegative = Field(0.15, description="margin per unit of label distance, for margin release")
    margin_alpha: NonNegative = Field(0.1, description="α, the constant margin, for margin paper")
    homo_gd_size: Width = Field(64, description="node width of the homogeneous graph")
    hetero_gd_size: Width = Field(32, description="node width of the heterogeneous graph")
    homo_gd_prior: Pattern = Field([0, 0, 1, 0, 1, 0], description="pattern over V→L, A→L, L→V, A→V, L→A, V→A")
    hetero_gd_prior: Pattern = Field([0, 0, 1, 0, 1, 1], description="as homo_gd_prior")
    gd_prior_temperature: Positive = Field(0.25, description="divides a prior pattern before its softmax")
    gd_edge_temperature: Positive = Field(8.0, description="divides the edge scores before their softmax")
    gd_reg_weight: NonNegative = Field(10.0, description="pull of the mean edges to the prior")
    gd_repr_weight: NonNegative = Field(10.0, description="weight of the representation terms")

    # Training
    batch_size: Count = Field(16, description="utterances in a batch")
    eval_batch_size: Count = Field(64, description="utterances in a batch of evaluation; changes the speed alone")
    update_epochs: Count = Field(10, description="batches whose gradients add up before a step")
    grad_clip: float = Field(0.6, description="largest absolute gradient; -1: no clipping")
    optimizer: Literal["adam"] = Field("adam", description="the release's")
    learning_rate: Positive = Field(1e-4, description="initial step size")
    learning_rate_bert: Positive | None = Field(None, description="of the text encoder; null: learning_rate")
    adam_betas: Annotated[list[Probability], Field(min_length=2, max_length=2)] = Field(
        [0.9, 0.999], description="β1, β2 of Adam"
    )
    adam_eps: Positive = Field(1e-8, description="ε of Adam")
    scheduler: Literal["plateau"] = Field("plateau", description="lower the rate when the validation Loss stalls")
    scheduler_factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="multiplies the rate at a plateau")
    patience: Annotated[StrictInt, Field(ge=0)] = Field(
        5, description="epochs without a lower Loss before the rate falls"
    )
    weight_decay: NonNegative = Field(0.005, description="times weights, added to gradients if weight_decay_applied")
    early_stop: Count = Field(10, description="epochs without a new best before training ends")
    max_epochs: Count | None = Field(None, description="stop here at the latest; null: only early stopping")
    KeyEval: Literal["Loss", "MAE", "Acc_2", "F1_score", "Acc_7"] = Field(
        "Loss", description="validation metric that picks the best epoch"
    )
    keep_checkpoints: Literal["all"] | Count = Field(
        "all", description="how many of the last epochs' checkpoints stay; the best one always does"
    )
    min_improvement: NonNegative = Field(1e-6, description="least change of KeyEval that makes a new best")

    # IGNORED_KEYS
    num_classes: Count = Field(3, description="ignored")
    language: Name = Field("en", description="ignored")
    train_samples: Count = Field(1284, description="ignored: counted in the data")
    need_model_aligned: Flag = Field(True, description="ignored")

    @model_validator(mode="after")
    def _choose_switches(self) -> "DMDConfig":
        for key, value in PRESETS[self.objective].items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        return self

    @model_validator(mode="after")
    def _check_together(self) -> "DMDConfig":
        width, heads = self.dst_feature_dim_nheads
        if width % heads:
            raise ValueError(
                f"dst_feature_dim_nheads is [{width}, {heads}], but the width {width} must be divisible by the "
                f"{heads} heads"
            )
        if width % 2:
            raise ValueError(f"dst_feature_dim_nheads is [{width}, {heads}], but the width must be even (positions)")
        if not self.feature_decoupling and self.lambda_decoupling > 0:
            raise ValueError(
                f"lambda_decoupling is {self.lambda_decoupling}, but without feature_decoupling no part is to be told "
                "from another; set it to 0"
            )
        if self.grad_clip <= 0 and self.grad_clip != -1:
            raise ValueError(f"grad_clip is {self.grad_clip}; allowed: greater than 0, or -1 for no clipping")
        return self


SETTING_NAMES = tuple(DMDConfig.model_fields)
