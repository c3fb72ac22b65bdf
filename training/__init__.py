"""Makes the models that gradlens measures: one visible loop, every arm of the study."""
