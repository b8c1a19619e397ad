"""sl_basic: supervised fine-tuning on conversations or prompt and answer rows."""

from crucible_kitchen.recipes.recipe import Preset, Recipe
from crucible_kitchen.workflows.supervised import SUPERVISED

SL_BASIC = Recipe(
    name="sl_basic",
    description="Supervised fine-tuning on conversations or prompt and answer rows.",
    workflow=SUPERVISED,
    defaults={
        "model": "meta-llama/Llama-3.1-8B",
        "dataset": "HuggingFaceH4/no_robots",
        "lora_rank": 32,
        "learning_rate": 2e-4,
        "lr_schedule": "linear",
        "batch_size": 128,
        "max_length": 32768,
        "train_on": "all_assistant_messages",
        "num_epochs": 1,
    },
    presets=(
        Preset(
            name="tiny",
            description="A Qwen3 of a few million parameters on generated word problems: offline, a minute on 2 cores.",
            config={
                "model": "builtin:tiny-qwen3",
                "dataset": "builtin:word-problems#train",
                "eval_dataset": "builtin:word-problems#test",
                "lora_rank": 0,
                # Low enough that rounding differences, which grow with it, stay under 1e-5 in every step's loss.
                "learning_rate": 4e-4,
                "warmup_steps": 20,
                "batch_size": 8,
                "max_length": 512,
                "num_epochs": 2,
                "eval_at_start": True,
                "sample_prompts": 1,
                "save_every": 100,
            },
        ),
        Preset(
            name="tiny_lora",
            description="A LoRA adapter on that Qwen3, pretrained, for the same word problems: offline, a minute on 2 "
            "cores.",
            config={
                "model": "builtin:tiny-qwen3-base",
                "dataset": "builtin:word-problems#train",
                "eval_dataset": "builtin:word-problems#test",
                "lora_rank": 16,
                "learning_rate": 5e-3,
                "warmup_steps": 20,
                "batch_size": 8,
                "max_length": 512,
                "num_epochs": 2,
                "eval_at_start": True,
                "sample_prompts": 1,
                "save_every": 100,
            },
        ),
    ),
)
