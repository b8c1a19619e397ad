"""Supervised fine-tuning."""

from crucible_kitchen.stages.training import EPOCHS, STEPS
from crucible_kitchen.workflows.tree import ConditionalNode, ConfigFlag, Every, LoopNode, StageNode, Workflow

SUPERVISED = Workflow(
    name="supervised",
    description="Fine-tune a model on rows of prompts and answers with a weighted cross-entropy.",
    body=(
        StageNode(stage="load_dataset"),
        StageNode(stage="start_session"),
        StageNode(stage="init_tokenizer"),
        StageNode(stage="build_datums"),
        ConditionalNode(
            name="before",
            predicate=ConfigFlag(key="eval_at_start"),
            body=(StageNode(stage="evaluate"),),
        ),
        LoopNode(
            name=EPOCHS,
            count="num_epochs",
            body=(
                StageNode(stage="begin_epoch"),
                LoopNode(
                    name=STEPS,
                    count="epoch_steps",
                    step_loop=True,
                    body=(
                        StageNode(stage="get_batch"),
                        StageNode(stage="forward_backward"),
                        StageNode(stage="optim_step"),
                        StageNode(stage="log_metrics"),
                        ConditionalNode(
                            name="save", predicate=Every(config_key="save_every"), body=(StageNode(stage="checkpoint"),)
                        ),
                        ConditionalNode(
                            name="measure",
                            predicate=Every(config_key="eval_every"),
                            body=(StageNode(stage="evaluate"),),
                        ),
                    ),
                ),
            ),
        ),
        StageNode(stage="save_final"),
        StageNode(stage="evaluate"),
        StageNode(stage="register_model"),
        ConditionalNode(name="deployment", predicate=ConfigFlag(key="deploy"), body=(StageNode(stage="deploy"),)),
    ),
    finalizer=(StageNode(stage="cleanup"),),
)
