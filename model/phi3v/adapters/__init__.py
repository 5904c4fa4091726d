"""Adapters: LoRA fine-tunings in PEFT's format, merged into a checkpoint's weights."""
