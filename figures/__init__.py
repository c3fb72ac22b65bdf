"""Figure sets: notebooks executed by papermill, and a manifest that ties each figure to data and checkpoints."""
