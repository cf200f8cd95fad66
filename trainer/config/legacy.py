"""Where a setting stands now that once stood at the top level, or is called otherwise elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

NEW_PLACES: Mapping[str, str] = {
    "base_model": "model.path",
    "model_path": "model.path",
    "model_name_or_path": "model.path",
    "model_name": "locked.model_name",
    "model_architecture": "locked.model_architecture",
    "vocab_size": "locked.vocab_size",
    "max_length": "model.max_length",
    "max_seq_length": "model.max_length",
    "torch_dtype": "model.dtype",
    "dtype": "model.dtype",
    "bf16": "model.dtype",
    "batch_size": "hyperparameters.tokens_per_batch",
    "per_device_train_batch_size": "hyperparameters.tokens_per_batch",
    "gradient_accumulation_steps": "hyperparameters.tokens_per_batch",
    "learning_rate": "hyperparameters.learning_rate",
    "lr": "hyperparameters.learning_rate",
    "num_epochs": "hyperparameters.num_epochs",
    "num_train_epochs": "hyperparameters.num_epochs",
    "epochs": "hyperparameters.num_epochs",
    "max_steps": "hyperparameters.max_steps",
    "warmup_steps": "hyperparameters.warmup_steps",
    "weight_decay": "hyperparameters.weight_decay",
    "max_grad_norm": "hyperparameters.max_grad_norm",
    "lr_scheduler_type": "hyperparameters.schedule",
    "seed": "hyperparameters.seed",
    "dataset": "data.path",
    "dataset_path": "data.path",
    "train_file": "data.path",
    "output_dir": "output.checkpoints_dir",
    "checkpoints_dir": "output.checkpoints_dir",
    "save_steps": "output.checkpoint_every_steps",
    "logging_steps": "monitoring.report_every_seconds",
    "report_to": "monitoring.report_to",
    "profile_name": "profile.name",
    "device": "environment.device",
    "num_threads": "environment.num_threads",
}
