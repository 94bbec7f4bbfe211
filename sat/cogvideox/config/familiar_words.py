"""Words that people know from other trainers (diffusers, finetrainers, kohya's scripts), and the key that is meant.

Each row: words, what a training run calls it, what sampling calls it ("": it has no such thing). The text may go on
behind the example with what is different here.
"""

from __future__ import annotations

from cogvideox.config.schema import Kind

_LORA = "model.network_config.params.modules.lora_config.params"
_OPTIMIZER = "deepspeed.optimizer.params"
_STEPS = "args.train_iters=2000 (optimizer steps"
_TRAIN_SIZE = "data.video_size=[480,720] (height, width)"
_SAMPLE_SIZE = "args.sampling_image_size=[480,720] (height, width)"
_DTYPE = "deepspeed.bf16.enabled=true deepspeed.fp16.enabled=false (or the other way round)"

_ROWS: tuple[tuple[str, str, str], ...] = (
    # weights and places
    (
        "model model_path model_name pretrained_model_name_or_path pretrained_model base_model checkpoint ckpt "
        "ckpt_path weights transformer transformer_path dit lora lora_path lora_weights network_weights",
        "args.load=CogVideoX-2b-sat/transformer (a SAT checkpoint)",
        "args.load=ckpts/my_run (a SAT checkpoint or a run folder)",
    ),
    ("resume_from_checkpoint resume_from resume_path", "args.resume=latest", ""),
    (
        "output_dir output output_path out save_dir save_path output_folder",
        "args.save=ckpts",
        "args.output_dir=outputs",
    ),
    ("output_name run_name name", "args.experiment_name=my_style", ""),
    # data
    (
        "data_root dataset data_dir dataset_path dataset_dir train_data_dir instance_data_root instance_data_dir "
        "video_folder videos clips data_path",
        "args.train_data=[my_clips] (folders or lists)",
        "",
    ),
    ("validation_data val_data eval_data valid_data_dir", "args.valid_data=[held_out_clips] (folders or lists)", ""),
    (
        "num_frames frames max_frames max_num_frames video_length clip_length n_frames target_frames sample_n_frames",
        "data.max_num_frames=49 (pixel frames)",
        "args.sampling_num_frames=13 (latent frames: 13 give 49 pixel frames)",
    ),
    ("resolution height width image_size video_size size height_width resolutions", _TRAIN_SIZE, _SAMPLE_SIZE),
    (
        "random_hw_adapt random_size random_sizes random_resolution multiscale multi_scale video_sample_size "
        "image_sample_size",
        "'data.buckets={pixels: {from: 256x384, to: 480x720}, vary: size}' (a size drawn for each clip in every epoch)",
        "",
    ),
    (
        "random_frame_crop random_frames random_num_frames frame_buckets",
        "'data.buckets={frames: {from: 9, to: 49}, vary: frames}' (a number of frames drawn for each clip in every "
        "epoch)",
        "",
    ),
    (
        "training_with_video_token_length token_sample_size video_token_length token_length",
        "'data.buckets={tokens: 49x480x720, frames: [9, 21, 49], vary: both}' (large sizes with few frames, small ones "
        "with many)",
        "",
    ),
    (
        "enable_bucket enable_buckets bucketing aspect_ratio_bucketing use_buckets aspect_ratios resolution_buckets "
        "random_ratio_crop fix_sample_size",
        "data.buckets={} (sizes of eight aspect ratios; each clip takes the one that suits it)",
        "",
    ),
    ("video_sample_n_frames", "data.max_num_frames=49 (pixel frames)", ""),
    ("video_sample_stride sample_stride", "data.frame_stride=3 (every third frame of the file)", ""),
    ("fps frame_rate framerate", "data.fps=8", "args.sampling_fps=8"),
    ("dataloader_num_workers workers max_data_loader_n_workers", "args.num_workers=4", ""),
    ("caption_dropout_p caption_dropout_rate ucg_rate", "model.conditioner_config.params.caption_dropout=0.1", ""),
    # steps and batches
    (
        "steps max_train_steps train_steps num_train_steps max_steps iterations iters total_steps",
        "args.train_iters=2000",
        "args.num_steps=50",
    ),
    (
        "epochs epoch num_epochs num_train_epochs max_train_epochs train_epochs",
        f"{_STEPS}; an epoch is clips / effective batch of them)",
        "",
    ),
    (
        "batch_size train_batch_size micro_batch_size per_device_train_batch_size",
        "deepspeed.train_micro_batch_size_per_gpu=1 (clips at a time on each device)",
        "args.batch_size=1",
    ),
    (
        "gradient_accumulation_steps gradient_accumulation grad_accum accumulation_steps accumulate_grad_batches",
        "deepspeed.gradient_accumulation_steps=16",
        "",
    ),
    # optimizer
    ("lr learning_rate unet_lr max_lr peak_lr base_lr", f"{_OPTIMIZER}.lr=1e-4", ""),
    ("optimizer optimizer_type optim", "deepspeed.optimizer.type=AdamW", ""),
    ("weight_decay adam_weight_decay", f"{_OPTIMIZER}.weight_decay=1e-4", ""),
    ("betas adam_beta1 adam_beta2 beta1 beta2", f"{_OPTIMIZER}.betas=[0.9,0.95]", ""),
    ("eps epsilon adam_epsilon", f"{_OPTIMIZER}.eps=1e-8", ""),
    ("max_grad_norm gradient_clipping grad_clip clip_grad gradient_clip_val", "deepspeed.gradient_clipping=0.1", ""),
    ("lr_scheduler scheduler lr_scheduler_type", "args.lr_schedule=cosine", ""),
    ("lr_warmup_steps num_warmup_steps warmup_iters", "args.warmup_steps=100", ""),
    # LoRA
    ("rank lora_rank lora_r network_dim lora_dim", f"{_LORA}.r=128", ""),
    ("alpha lora_alpha network_alpha", f"{_LORA}.lora_alpha=128 (the adapters are scaled by lora_alpha / r)", ""),
    ("lora_dropout network_dropout", f"{_LORA}.lora_dropout=0.05", ""),
    ("lora_scale lora_weight strength lora_multiplier network_mul", "", "args.lora_strength=0.8"),
    # precision and memory
    ("dtype mixed_precision precision torch_dtype weight_dtype bf16 fp16", _DTYPE, "args.bf16=true args.fp16=false"),
    ("gradient_checkpointing activation_checkpointing grad_checkpointing", "args.checkpoint_activations=true", ""),
    ("activation_offloading activation_offload cpu_offload_checkpointing", "args.offload_activations=true", ""),
    ("zero_stage zero", "deepspeed.zero_optimization.stage=2", ""),
    (
        "gpus num_gpus n_gpus num_processes nproc_per_node",
        "NPROC=4 bash finetune_multi_gpus.sh",
        "NPROC=4 bash inference.sh",
    ),
    (
        "t5_cpu text_encoder_cpu offload_text_encoder text_encoder_offload unload_text_encoder "
        "cache_text_encoder_outputs cache_text_embeddings precompute_text_embeddings",
        "args.text_encoder_device=auto (captions are encoded first, then the text encoder is gone; or cpu, device)",
        "args.text_encoder_device=auto (prompts are encoded first, then the text encoder is gone; or cpu, device)",
    ),
    # saving, evaluation, logging
    (
        "checkpointing_steps save_steps save_every save_every_n_steps save_freq checkpoint_interval",
        "args.save_interval=500",
        "",
    ),
    ("checkpoints_total_limit save_total_limit keep_last_n", "args.keep_last=3", ""),
    ("validation_steps eval_steps validation_interval eval_every sample_every_n_steps", "args.eval_interval=250", ""),
    ("logging_steps log_every log_steps log_every_n_steps", "args.log_interval=20", ""),
    ("report_to tracker tracker_name logger log_with use_wandb", "args.wandb=true (TensorBoard is always written)", ""),
    # sampling
    (
        "prompt prompts validation_prompt validation_prompts sample_prompts text caption",
        'args.eval_prompts=["a ship at sea"] (sampled at every evaluation)',
        'args.prompts=["a ship at sea"]',
    ),
    ("prompt_file prompts_file", "", "args.input_type=txt args.input_file=prompts.txt"),
    ("num_inference_steps inference_steps sampling_steps num_steps", "args.sample_steps=50", "args.num_steps=50"),
    (
        "guidance cfg cfg_scale guidance_scale",
        "model.sampler_config.params.guidance.params.scale=6",
        "args.guidance_scale=6",
    ),
    ("num_videos num_videos_per_prompt num_images_per_prompt num_outputs", "", "args.num_samples=2"),
    ("image image_path init_image", "", 'args.prompts=["a ship leaves@@ship.png"] (image-to-video models)'),
)


def meant(word: str, kind: Kind | None) -> str:
    """The key that somebody means by `word` in a run of this kind, with an example; "" when it is no such word."""
    found = _BY_WORD.get(word.lower().lstrip("-").replace("-", "_"))
    if found is None or kind is None:
        return ""
    text, other = found if kind == "train" else found[::-1]
    if not text:
        return f"that is for {'sampling' if kind == 'train' else 'training'}: there write {other}"
    return f"here that is {text}"


_BY_WORD = {word: (train, sample) for words, train, sample in _ROWS for word in words.split()}
