"""What other tools call the settings, so that a wrong name leads to the right one.

Names are compared without case, hyphens and underscores, and without the section before the dot. Sources: nanoGPT's and
nanochat's train.py, litgpt's and torchtitan's configs, Hugging Face's LlamaConfig and TrainingArguments, llamactl before 0.1.
"""

from dataclasses import dataclass

# Name here -> names elsewhere, separated by spaces.
OTHER_NAMES = {
    "model.n_layers": "layers n_layer num_layers num_hidden_layers depth num_blocks",
    "model.dim": "width n_embd n_embed d_model model_dim hidden_size hidden_dim embed_dim embedding_dim embedding_size emb_dim",
    "model.n_heads": "heads n_head num_heads num_attention_heads",
    "model.n_kv_heads": "kv_heads n_kv_head num_kv_heads num_key_value_heads n_query_groups num_query_groups",
    "model.head_dim": "head_width head_size d_head d_k",
    "model.ffn_dim": "hidden ffn_hidden_size intermediate_size d_ff ff_dim mlp_dim mlp_hidden_dim mlp_ratio ffn_dim_multiplier",
    "model.context": "block_size seq_len seq_length sequence_len sequence_length max_seq_len max_seq_length "
    "max_sequence_length context_length context_size context_window window n_ctx ctx max_position_embeddings max_length",
    "model.vocab_size": "vocab n_vocab padded_vocab_size",
    "model.tie_embeddings": "tied tie_weights tie_word_embeddings weight_tying",
    "model.rope_theta": "theta rope_base rotary_base",
    "model.norm_eps": "rms_norm_eps layer_norm_eps epsilon",
    "data.name": "dataset data_dir dataset_name train_data",
    "optim.name": "optimizer optimizer_name optimizer_type optim",
    "optim.lr": "learning_rate max_lr peak_lr base_lr matrix_lr muon_lr adam_lr step_size",
    "optim.weight_decay": "wd decay l2",
    "optim.beta1": "adam_beta1 adamw_beta1",
    "optim.beta2": "adam_beta2 adamw_beta2",
    "optim.eps": "adam_eps adam_epsilon",
    "optim.embedding_scale": "embedding_lr embed_lr unembedding_lr",
    "optim.normuon_beta2": "row_memory",
    "optim.max_grad_norm": "clip grad_clip gradient_clip gradient_clip_val gradient_clipping clip_grad clip_grad_norm max_norm",
    "schedule.name": "scheduler lr_schedule lr_scheduler lr_scheduler_type decay_type",
    "schedule.warmup": "warmup_ratio warmup_steps warmup_iters warmup_fraction lr_warmup lr_warmup_steps",
    "schedule.cooldown": "warmdown warmdown_ratio decay_ratio cooldown_fraction lr_decay_iters",
    "schedule.min_lr_ratio": "floor min_lr final_lr_frac lr_min min_lr_rate min_lr_factor",
    "train.tokens": "max_tokens num_tokens total_tokens train_tokens token_budget budget epochs epoch num_epochs n_epochs "
    "max_epochs num_train_epochs steps max_steps num_steps total_steps iters max_iters num_iterations iterations "
    "target_param_data_ratio",
    "train.tokens_per_step": "total_batch_size global_batch_size train_batch_size tokens_per_batch effective_batch_size",
    "train.micro_batch": "batch_size batch bs micro_batch_size device_batch_size local_batch_size mini_batch_size "
    "per_device_batch_size per_device_train_batch_size",
    "train.seed": "seed random_seed manual_seed model_seed",
    "train.init_from": "initial_checkpoint pretrained checkpoint load_from from_checkpoint",
    "train.eval_every": "eval_interval eval_steps eval_freq validate_every val_interval val_check_interval",
    "train.eval_tokens": "eval_iters eval_batches val_tokens eval_max_batches",
    "train.save_every": "save_interval save_steps checkpoint_every checkpoint_interval save_freq ckpt_interval",
    "train.keep_last": "keep save_total_limit keep_latest_k max_checkpoints keep_checkpoints",
    "train.prompts": "sample_prompts",
    "train.device": "device_type accelerator gpu",
    "train.precision": "dtype bf16 fp16 fp32 amp mixed_precision autocast half",
    "train.parallel": "ddp fsdp strategy data_parallel",
    "train.compile": "torch_compile use_compile cuda_graphs use_cuda_graphs reduce_overhead",
    "train.activation_checkpointing": "recompute gradient_checkpointing grad_checkpointing activation_checkpoint remat",
}

# Where another name is not enough, because the unit differs.
NOTES = {
    "train.tokens": "The budget is in tokens; llamactl plan shows how many steps and epochs that is.",
    "train.tokens_per_step": "It counts tokens, not sequences.",
    "train.micro_batch": "It counts windows on the device at once; the batch of a step is train.tokens_per_step, in tokens.",
    "train.eval_tokens": "It counts tokens.",
    "schedule.warmup": "It is a share of the steps, between 0 and 1.",
    "schedule.cooldown": "It is a share of the steps, between 0 and 1.",
    "schedule.min_lr_ratio": "It is a share of the peak learning rate, between 0 and 1.",
    "optim.embedding_scale": "It is a multiple of optim.lr.",
    "model.ffn_dim": "It counts channels; it is not a multiple of model.dim.",
}

# What llamactl does not have, and why.
ACCUMULATION = "Gradients are accumulated until a step has train.tokens_per_step tokens, train.micro_batch windows at a time."
ABSENT = {
    "gradientaccumulation": ACCUMULATION,
    "gradientaccumulationsteps": ACCUMULATION,
    "accumulationsteps": ACCUMULATION,
    "gradaccum": ACCUMULATION,
    "gradaccumsteps": ACCUMULATION,
    "bias": "A Llama has no biases. model.qkv_bias=true gives queries, keys and values those of a Qwen2.",
    "activation": "A Llama has SwiGLU; docs/changing.md shows how to change the model.",
    "hiddenact": "A Llama has SwiGLU; docs/changing.md shows how to change the model.",
    "nesterov": "Muon always uses Nesterov momentum.",
    "flashattention": "PyTorch's fused attention is always used.",
    "flash": "PyTorch's fused attention is always used.",
    "numworkers": "Batches are read from memory-mapped shards by a thread; there are no workers to set.",
    "dataloadernumworkers": "Batches are read from memory-mapped shards by a thread; there are no workers to set.",
    "loginterval": "Every step is logged, to metrics.jsonl.",
    "logevery": "Every step is logged, to metrics.jsonl.",
    "loggingsteps": "Every step is logged, to metrics.jsonl.",
}


@dataclass(frozen=True)
class OtherName:
    """The setting that another tool's name leads to (empty for none), and a sentence on what differs."""

    setting: str
    note: str


def normalize_name(name: str) -> str:
    """Return a name in lower case without its section, hyphens and underscores: `--Learning-Rate` -> `learningrate`."""
    return name.strip().rpartition(".")[2].lower().replace("-", "").replace("_", "")


_SETTINGS = {normalize_name(other): name for name, others in OTHER_NAMES.items() for other in others.split()}


def translate_name(name: str) -> OtherName | None:
    """Look up what another tool's name is called here; None for a name that is not known."""
    key = normalize_name(name)
    if key in ABSENT:
        return OtherName("", ABSENT[key])
    if key not in _SETTINGS:
        return None
    return OtherName(_SETTINGS[key], NOTES.get(_SETTINGS[key], ""))
