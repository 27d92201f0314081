"""From scored samples to new weights. policy: the learner. losses: formulas per token. critic: learnt values.
optimizer_step, optim: how a step is taken. config: all knobs, without torch."""
